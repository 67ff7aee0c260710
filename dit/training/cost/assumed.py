"""Known shapes for a dry run without data and network: ImageNet, and Stable Diffusion's first
stage."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit.config import TrainConfig
from dit.data.sources import dataset_exists
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import WEIGHTS, Autoencoder, build_codec, load_autoencoder
from dit.latents.load import build_source
from dit.latents.shards import holds_latents
from dit.latents.store import Latents, read_index
from dit.runs.card import ModelCard

IMAGES, CLASSES = 1_281_167, 1000  # of ILSVRC 2012, training set
SD_VAE_NAME = r"[\w.-]+/sd-vae-[\w.-]+"  # hub names, such as stabilityai/sd-vae-ft-ema
SD_VAE = dict(
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    latent_channels=4,
)
"""Its config.json: factor 8, four channels, 83,653,863 parameters."""
SD_SCALE = 0.18215


@dataclass(frozen=True, kw_only=True)
class AssumedAutoencoder(Autoencoder):
    """Stable Diffusion's first stage without weights."""


@dataclass
class AssumedImageNet:
    """ImageNet's training set as a source of latents that can be described, not read."""

    shape: tuple[int, int, int]
    classes: list[str]
    flips: bool
    labels: np.ndarray = field(default_factory=lambda: np.zeros(IMAGES, dtype=np.int64))

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        raise NotImplementedError

    def statistics(self) -> tuple[Tensor, Tensor]:
        # any values do: the cost does not depend on them
        return torch.zeros(self.shape[0]), torch.ones(self.shape[0])


def load_or_assume_source(
    config: TrainConfig, autoencoder: Autoencoder, before: ModelCard | None, ranks: Ranks
) -> Latents:
    """Return the data, or ImageNet in their place: for its presets, where --data is not found.

    Args:
        before: card of the run that is resumed or guided, whose classes the data have.
    """
    assumable = config.preset.startswith("imagenet") and config.conditioning != "text"
    if dataset_exists(config.data) or not assumable:
        return build_source(config, autoencoder, ranks)

    names = before.classes if before else [str(i) for i in range(CLASSES)]
    shape = autoencoder.latent_shape(config.image_size)
    return AssumedImageNet(shape, names, config.flip is not False)


def load_or_assume_autoencoder(
    config: TrainConfig, before: ModelCard | None, device: torch.device
) -> Autoencoder:
    """Return the autoencoder, or a known shape in its place where it is not on this disk."""
    local = Path(config.vae).expanduser().is_dir()
    if local or not re.fullmatch(SD_VAE_NAME, config.vae) or is_cached(config.vae):
        return load_autoencoder(config.vae, device)

    from diffusers import AutoencoderKL

    # A run or latents may be found though the autoencoder is not: they say which weights are meant.
    checksum = before.vae_sha256 if before else None
    if holds_latents(Path(config.data)):
        checksum = read_index(Path(config.data))["checksum"]
    with torch.device("meta"):
        network = AutoencoderKL(**SD_VAE)
    return AssumedAutoencoder(
        name=config.vae,
        codec=build_codec(network),
        factor=8,
        channels=4,
        shift=torch.zeros(4, 1, 1),
        scale=torch.full((4, 1, 1), SD_SCALE),
        checksum=checksum,
    )


def is_cached(name: str) -> bool:
    """Whether the hub's cache has the weights; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, WEIGHTS), str)
