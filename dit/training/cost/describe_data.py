"""The data of a training in words: images, classes and latents."""

import numpy as np

from dit.config import TrainConfig
from dit.data.counts import count_of, describe_count
from dit.data.labels import NAMED
from dit.data.path_patterns import IN_MEMORY
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.psnr import describe_psnr
from dit.latents.on_the_fly import OnlineLatents
from dit.latents.store import Latents
from dit.runs.card import ModelCard, NetworkSpec
from dit.training.cost.assumed import AssumedAutoencoder, AssumedImageNet
from dit.utils.files import shell_quote
from dit.utils.image_size import describe_size

UNEVEN = 20  # times as many images in a class as in another


def describe_data(config: TrainConfig, source: Latents, spec: NetworkSpec) -> str:
    """Return how many images and classes a network is trained on."""
    captions = spec.text_width is not None
    count = describe_count(len(source.labels), len(source.classes), captions)
    if source.classes and not spec.num_classes:
        count = f"{count_of(len(source.labels), 'image')}, unconditional"
    if isinstance(source, AssumedImageNet):
        count = f"not found here; ImageNet assumed, {count}"
    elif source.classes and spec.num_classes and not captions:
        count += describe_balance(source)
    if isinstance(source, OnlineLatents) and source.left_out:
        count += f", {len(source.left_out):,} left out"
    return f"{config.data}: {count}, flips {'on' if source.flips else 'off'}"


def describe_balance(source: Latents) -> str:
    """Return how many images the classes have, as " (60 each)" or " (5 to 60)"."""
    counts = np.bincount(source.labels, minlength=len(source.classes))
    least, most = counts.min(), counts.max()
    return f" ({most:,} each)" if least == most else f" ({least:,} to {most:,} each)"


def question_classes(card: ModelCard) -> list[str]:
    """Return what is probably not meant: classes with few images, or without any."""
    counts = card.class_counts
    if not counts or not card.network.num_classes:
        return []
    if len(card.ids) < card.network.num_classes:
        return [_question_empty(card)]
    if max(counts) < UNEVEN * min(counts):
        return []
    name = card.class_name(counts.index(min(counts)))
    return [
        f"class {name} has {count_of(min(counts), 'image')}, another has {max(counts):,}: it is "
        "learned from few steps; add images of it"
    ]


def _question_empty(card: ModelCard) -> str:
    """Ask about classes without images, such as class 0 of labels that begin at 1."""
    first, total = card.ids[0], card.network.num_classes
    empty = sorted({*range(total)}.difference(card.ids))
    if empty == [*range(first)] and card.class_name(0) == "0":
        which = "class 0 has" if first == 1 else f"classes 0 to {first - 1} have"
        return (
            f"{which} no images: labels are counted from 0, these begin at {first}; subtract "
            f"{first} from each"
        )
    names = ", ".join(map(card.class_name, empty[:NAMED])) + (", …" if len(empty) > NAMED else "")
    have = "has" if len(empty) == 1 else "have"
    given = f"{len(empty):,} of {count_of(total, 'class')} {have} no images: {names}"
    return f"{given}; what is sampled of them is not learned"


def autoencoder_command(config: TrainConfig) -> str:
    """Return the command that trains an autoencoder on the images of a training."""
    if config.data == IN_MEMORY:
        return "`dit train-vae --data FOLDER --out VAE`, with these images in the folder"
    return f"`dit train-vae --data {shell_quote(config.data)} --out VAE`"


def describe_latents(
    config: TrainConfig, source: Latents, autoencoder: Autoencoder, psnr: float | None = None
) -> str:
    """Return the shape of latents, and what encodes images to them, with its quality if known."""
    shape = "x".join(map(str, source.shape))
    stage = f"{autoencoder.name} (factor {autoencoder.factor})"
    if isinstance(autoencoder, AssumedAutoencoder):
        stage += "; its weights are not here, their shapes are assumed"
    if psnr is not None:
        stage += f"; PSNR {describe_psnr(psnr)}"
    return f"{shape} from {describe_size(config.image_size)}, {stage}"
