"""Build all that a training needs, from its inputs and its plan."""

from typing import Any

from dit.build import build_process
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned, Captions
from dit.training.alignment import build_alignment
from dit.training.batches import DataStream
from dit.training.build_loss import build_loss, build_meanflow, count_uniforms
from dit.training.build_networks import build_networks, compile_tangent, wrap
from dit.training.checkpointing import load
from dit.training.inputs import RunInputs
from dit.training.session import TrainingPlan, TrainingSession
from dit.training.state import new_state


def prepare(inputs: RunInputs, plan: TrainingPlan, ranks: Ranks) -> TrainingSession:
    """Return the session: stream, networks, loss, and the state, fresh or of the checkpoint."""
    card, source, encoder = inputs.card, inputs.source, inputs.encoder
    config = card.config
    process = build_process(config)
    # Without classes every label is the null one.
    stream = DataStream(
        source,
        process,
        config.seed,
        config.global_batch_size,
        null_label=card.network.num_classes,
        label_dropout=1.0 if card.unconditional else config.label_dropout,
        flip=source.flips and config.flip is not False,
        ranks=ranks,
        uniforms=count_uniforms(card),
    )

    network, ema, power_emas = build_networks(card, plan, ranks)
    wrapped = wrap(network, card, plan, ranks, inputs.text_tokens)
    captions = Captions(source.classes, "", encoder) if encoder else None
    conditioned = Captioned(wrapped, captions) if captions else wrapped

    alignment = build_alignment(network, ema.network, process, captions, inputs, plan, ranks)
    if config.objective == "meanflow":
        tangent: Any = compile_tangent(network, plan.compiled)
        tangent = Captioned(tangent, captions) if captions else tangent
        loss, terms = build_meanflow(config, conditioned, tangent, process, stream.null_label)
        late_loss = loss
    else:
        loss, terms = build_loss(config, conditioned, process, alignment)
        late_loss, _ = build_loss(config, conditioned, process)

    # Loaded last, into tensors that are where training needs them.
    state = new_state(
        network,
        alignment.projector if alignment else None,
        ema,
        power_emas,
        config,
        process,
        terms,
        ranks.device,
    )
    start = load(plan.checkpoint, state, ranks) if plan.checkpoint else 0
    return TrainingSession(
        plan,
        card,
        inputs.autoencoder,
        captions,
        stream,
        state,
        wrapped,
        loss,
        late_loss,
        start,
        alignment.wrapped if alignment else None,
        inputs.vision,
    )
