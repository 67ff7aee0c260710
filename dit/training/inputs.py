"""Load what a run reads: autoencoder, data, text encoder; with its card."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from dit.build import (
    build_network,
    build_text_encoder,
    build_vision_encoder,
    with_data_statistics,
)
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.encoders.text import TextEncoder, count_text_tokens
from dit.encoders.vision import VisionEncoder
from dit.latents.store import Latents
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import read_card
from dit.training.build_card import (
    build_card,
    card_of_init,
    describe_network,
    with_absolute_paths,
)
from dit.training.checked_data import NOTHING, Given
from dit.training.cost.alignment import alignment_flops
from dit.training.cost.assumed import load_or_assume_autoencoder, load_or_assume_source
from dit.training.length import Pace, with_length
from dit.training.resume import require_autoencoder


@dataclass(frozen=True)
class RunInputs:
    """Data and frozen networks of a run, and the card of the network to train."""

    card: ModelCard
    source: Latents
    autoencoder: Autoencoder
    encoder: TextEncoder | None = None  # of captions
    vision: VisionEncoder | None = None  # of --align
    alignment: float = 0.0  # FLOPs of --align for one image, while it lasts
    pace: Pace | None = None  # where --minutes asked to measure it

    @property
    def text_tokens(self) -> int:
        """Tokens of a caption; 0 without captions."""
        return count_text_tokens(self.encoder)

    @cached_property
    def meta_network(self) -> nn.Module:
        """The network to train, without data: one of billions of parameters needs no memory."""
        with torch.device("meta"):
            return build_network(self.card.network)


def load_inputs(
    config: TrainConfig,
    ranks: Ranks,
    last: Path | None,
    parent_card: ModelCard | None,
    given: Given = NOTHING,
) -> RunInputs:
    """Load what a run reads; for a dry run, assume known shapes of what is not on this disk.

    Args:
        last: the checkpoint to continue from, whose run's latent statistics and classes hold.
        parent_card: of a run that this one shares them with.
        given: images and a network that Python code passed.
    """
    before = read_card(last.parents[1]) if last else parent_card
    if config.dry_run:
        autoencoder = load_or_assume_autoencoder(config, before, ranks.device)
    else:
        autoencoder = load_autoencoder(config.vae, ranks.device)
    source = load_or_assume_source(config, autoencoder, last, before, ranks, given.images)
    encoder = build_text_encoder(config, ranks.device)
    spec = describe_network(config, source, encoder, before, given.module)
    vision = build_vision_encoder(with_absolute_paths(config), spec, ranks.device)

    tokens = count_text_tokens(encoder)
    alignment = alignment_flops(spec, config, tokens, autoencoder, vision)
    continued = before.config if last and before else None
    config, pace = with_length(config, source, spec, continued, ranks, tokens, alignment)
    card = build_card(config, source, encoder, before, given.module)
    card = replace(card, vae_sha256=autoencoder.checksum)
    card = replace(card, align_sha256=vision.checksum if vision else None)
    # how a network embeds times is no flag: it follows from the weights that training starts from
    start = before if last else card_of_init(config)
    if start:
        theirs = start.network
        ours = theirs if theirs.interval else card.network
        network = replace(
            card.network,
            time_scale=theirs.time_scale,
            time_endpoint=theirs.time_endpoint,
            interval_smoothing=ours.interval_smoothing,
            mlp_norm_eps=theirs.mlp_norm_eps,
        )
        card = replace(card, network=network)
    if parent_card:
        require_autoencoder(card, parent_card, "the run to be guided", "put that one back")
    autoencoder = with_data_statistics(autoencoder, card)
    return RunInputs(card, source, autoencoder, encoder, vision, alignment, pace)
