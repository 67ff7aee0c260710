"""Describe the network that a configuration trains on its data, and check that they fit."""

import math
from dataclasses import replace

import numpy as np
from torch import nn

from dit.build import require_size
from dit.config import TrainConfig
from dit.data.counts import count_of
from dit.encoders.text import TextEncoder
from dit.errors import UserError
from dit.latents.store import Latents
from dit.models.embeddings import SMOOTHING
from dit.models.registry import is_classifier
from dit.runs.card import GivenSpec, ModelCard, NetworkSpec, class_mismatch
from dit.runs.checkpoint_files import find_weights
from dit.runs.own_network import require_fit
from dit.runs.weights import read_header
from dit.training.lr_schedule import total_steps
from dit.utils.hub import absolute_if_local
from dit.utils.image_size import size_of

SHIFT_BASE = 4096  # numbers of a latent whose times are not shifted
MAX_CAPTIONS = 10_000  # that a card keeps of its data


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the configuration with absolute paths of other networks, to be found from anywhere."""
    encoder = config.text_encoder and absolute_if_local(config.text_encoder)
    align = config.align
    if align not in (None, "self"):
        align = absolute_if_local(align)
    vae = absolute_if_local(config.vae)
    return replace(config, vae=vae, text_encoder=encoder, align=align)


def build_card(
    config: TrainConfig,
    source: Latents,
    encoder: TextEncoder | None = None,
    parent_card: ModelCard | None = None,
    module: nn.Module | None = None,
) -> ModelCard:
    """Return the card of the network that this configuration trains on this data.

    Args:
        parent_card: of a network whose latent statistics and classes it shares; statistics are
            measured on the data unless given.
        module: the network, if Python code passed it.
    """
    config = with_absolute_paths(config)
    if config.time_shift == "auto":
        config = replace(config, time_shift=time_shift_of(source.shape))
    spec = describe_network(config, source, encoder, parent_card, module)

    # A set of captions may have millions; the card keeps enough to show.
    classes = source.classes if spec.num_classes else []
    card = ModelCard(
        config=config,
        network=spec,
        classes=classes[:MAX_CAPTIONS] if encoder else classes,
        class_counts=None if encoder else _count_images(source, len(classes)),
        text_encoder_sha256=encoder.checksum if encoder else None,
        align_steps=_align_steps(config, len(source.labels), parent_card),
    )
    if parent_card and (mismatch := class_mismatch(card, parent_card)):
        label, theirs, ours = mismatch
        raise UserError(
            f"--data {config.data} has class {label} {theirs!r}, the run has {ours!r}",
            "the same classes for both",
            "name the classes of the data as the run's, which `dit info RUN --classes` lists",
        )
    if config.latent_norm == "vae":
        return card
    if parent_card:
        return replace(card, latent_mean=parent_card.latent_mean, latent_std=parent_card.latent_std)
    return _with_statistics(card, source)


def describe_network(
    config: TrainConfig,
    source: Latents,
    encoder: TextEncoder | None,
    parent_card: ModelCard | None = None,
    module: nn.Module | None = None,
) -> NetworkSpec:
    """Return the network that this configuration trains on this data; refuse one that cannot."""
    in_data = len(source.classes)
    num_classes = in_data if config.num_classes is None else config.num_classes
    _check_classes(config, num_classes, in_data, parent_card)

    channels, *size = source.shape
    spec = NetworkSpec(
        model=config.model,
        input_size=size_of(*size),
        in_channels=channels,
        num_classes=num_classes,
        learn_sigma=config.learn_sigma,
        conditioning=config.conditioning,
        block=config.block,
        inner_head=config.inner_head,
        text_width=encoder.width if encoder else None,
        unet_attention=config.unet_attention,
        interval=config.objective == "meanflow",
    )
    if spec.interval:
        spec = replace(spec, interval_smoothing=SMOOTHING)
    require_size(config.image_size, spec, config.vae)
    spec = GivenSpec.of(spec, module)
    require_fit(spec, config.recompute)
    return spec


def _align_steps(config: TrainConfig, images: int, before: ModelCard | None) -> int | None:
    """Return the steps that --align lasts; those of `before`, the same run with other --steps."""
    if config.align is None:
        return None
    if before and before.align_steps is not None:
        return before.align_steps
    # at least one: a projector without moments would be in no checkpoint to resume from
    return max(1, int(config.align_until * total_steps(config, images)))


def _with_statistics(card: ModelCard, source: Latents) -> ModelCard:
    """Return the card with mean and deviation of the data, which sampling reverses."""
    mean, std = source.statistics()
    if not (std > 0).all():
        raise UserError(
            f"latents of {card.config.data} with deviations {std.tolist()} by channel",
            "numbers above 0 with --latent-norm data",
            "pass --latent-norm vae: a channel that never changes cannot be scaled",
        )
    return replace(card, latent_mean=mean.tolist(), latent_std=std.tolist())


def _count_images(source: Latents, num_classes: int) -> list[int] | None:
    if not num_classes:
        return None
    return np.bincount(source.labels, minlength=num_classes).tolist()


def time_shift_of(shape: tuple[int, int, int]) -> float:
    """Return the time shift for latents of this shape (2510.11690): 1 for 4 x 32 x 32."""
    return math.sqrt(math.prod(shape) / SHIFT_BASE)


def _check_classes(
    config: TrainConfig, num_classes: int, in_data: int, parent_card: ModelCard | None
) -> None:
    """Refuse a number of classes that the data, with `in_data` of them, does not fit."""
    if num_classes and not in_data and parent_card:
        raise UserError(
            f"--data {config.data} has no classes, the run has {num_classes}",
            "the same classes for both",
            "sort the images by the run's classes, which `dit info RUN --classes` lists: in a "
            "subfolder for each",
        )
    if num_classes and not in_data:
        raise UserError(
            f"--num-classes {num_classes} for data without classes",
            "0, or data with classes, such as one subfolder for each",
            "drop --num-classes to train without classes",
        )
    if 0 < num_classes < in_data:
        raise UserError(
            f"--num-classes {num_classes} for data with {count_of(in_data, 'class')}",
            f"{in_data} or more, or 0 for none",
            "drop --num-classes to count them in the data",
        )
    if config.meanflow_scale != 1 and not num_classes:
        raise UserError(
            f"--meanflow-scale {config.meanflow_scale:g} for data without classes",
            "classes, and a null class that label dropout trains",
            "drop --meanflow-scale",
        )
    if is_classifier(config.model) and in_data < 2:
        raise UserError(
            f"--model {config.model} with --data {config.data}, which has "
            f"{count_of(in_data, 'class') if in_data else 'no classes'}",
            "two or more classes",
            "pass data with classes, such as a subfolder of images for each",
        )


def card_of_init(config: TrainConfig) -> ModelCard | None:
    """Return the card of the weights of --init, if there are any."""
    return read_header(find_weights(config.init))[0] if config.init else None
