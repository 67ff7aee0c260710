"""Build all that a training needs, from its card and data."""

from dit.build import build_loss, build_process
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import Captioned, Captions, TextEncoder
from dit.latents.store import Latents
from dit.runs.card import ModelCard
from dit.training.batches import DataStream
from dit.training.checkpointing import load
from dit.training.networks import build_networks, wrap
from dit.training.resolve import resolve
from dit.training.session import TrainingSession
from dit.training.state import new_state


def prepare(
    card: ModelCard,
    source: Latents,
    autoencoder: Autoencoder,
    ranks: Ranks,
    encoder: TextEncoder | None = None,
) -> TrainingSession:
    """Return network, optimizer and averages, fresh or as the checkpoint left them."""
    config = card.config
    plan = resolve(card, len(source.labels), autoencoder, encoder, ranks)
    process = build_process(config)
    stream = DataStream(
        source,
        process,
        config.seed,
        config.global_batch_size,
        null_label=card.network.num_classes,
        label_dropout=1.0 if card.unconditional else config.label_dropout,
        flip=source.flips and config.flip is not False,
        ranks=ranks,
    )

    network, ema, power_emas = build_networks(card, plan, ranks)
    wrapped = wrap(network, card, plan, ranks, encoder.length if encoder else 0)
    captions = Captions(source.classes, "", encoder) if encoder else None
    conditioned = Captioned(wrapped, captions) if captions else wrapped
    loss, terms = build_loss(config, conditioned, process)

    state = new_state(network, ema, power_emas, config, process, terms, ranks.device)
    start = load(plan.checkpoint, state, ranks) if plan.checkpoint else 0
    return TrainingSession(plan, card, autoencoder, captions, stream, state, wrapped, loss, start)
