"""Build all that a training needs, from its inputs and its plan."""

from typing import Any

from dit.build import build_loss, build_meanflow, build_process
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned, Captions
from dit.models.registry import count_tokens
from dit.runs.card import ModelCard
from dit.training.batches import DataStream
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
    wrapped = wrap(network, card, plan, ranks, encoder.length if encoder else 0)
    captions = Captions(source.classes, "", encoder) if encoder else None
    conditioned = Captioned(wrapped, captions) if captions else wrapped
    if config.objective == "meanflow":
        along: Any = compile_tangent(network, plan.compiled)
        along = Captioned(along, captions) if captions else along
        loss, terms = build_meanflow(config, conditioned, along, process, stream.null_label)
    else:
        loss, terms = build_loss(config, conditioned, process)

    # Loaded last, into tensors that are where training needs them.
    state = new_state(network, ema, power_emas, config, process, terms, ranks.device)
    start = load(plan.checkpoint, state, ranks) if plan.checkpoint else 0
    return TrainingSession(
        plan, card, inputs.autoencoder, captions, stream, state, wrapped, loss, start
    )


def count_uniforms(card: ModelCard) -> int:
    """Return how many random numbers the loss takes, an image, beside its time and its noise."""
    config = card.config
    # the earlier end of a step
    if config.objective == "meanflow":
        return 1
    # one number a token decides which are kept
    return count_tokens(card.network.model, card.network.input_size) if config.route else 0
