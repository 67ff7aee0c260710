"""The data of a training in words: images, classes and latents."""

import numpy as np

from dit.config import TrainConfig
from dit.data.counts import count_of, describe_count
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.psnr import describe_psnr
from dit.latents.on_the_fly import OnlineLatents
from dit.latents.store import Latents
from dit.runs.card import NetworkSpec
from dit.training.cost.assumed import AssumedAutoencoder, AssumedImageNet
from dit.utils.image_size import describe_size


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
