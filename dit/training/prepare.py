"""Build all that a training needs, from its inputs and its plan."""

from dit.build import build_loss, build_process
from dit.diffusion.alignment import draws_of
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned, Captions
from dit.models.registry import count_tokens
from dit.runs.card import ModelCard
from dit.training.alignment import build_alignment
from dit.training.batches import DataStream
from dit.training.build_networks import build_networks, wrap
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
        uniforms=_uniforms(card),
    )

    network, ema, power_emas = build_networks(card, plan, ranks)
    wrapped = wrap(network, card, plan, ranks, encoder.length if encoder else 0)
    captions = Captions(source.classes, "", encoder) if encoder else None
    conditioned = Captioned(wrapped, captions) if captions else wrapped

    alignment = build_alignment(network, ema.network, process, captions, inputs, plan, ranks)
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
        start,
        alignment.wrapped if alignment else None,
        late_loss,
    )


def _uniforms(card: ModelCard) -> int:
    """Return how many numbers the loss draws for an image."""
    tokens = 0
    if card.config.route:
        # one number a token decides which are kept
        tokens = count_tokens(card.network.model, card.network.input_size)
    return tokens + draws_of(card.config.align)
