"""Known shapes for a dry run without data and network: ImageNet, and Stable Diffusion's first
stage."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit.config import TrainConfig
from dit.config.presets import PRESETS
from dit.data.images import Images
from dit.data.sources import dataset_exists
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import CONFIG, WEIGHTS, Autoencoder, build_codec, load_autoencoder
from dit.latents.load import keep_class_order
from dit.latents.shards import holds_latents
from dit.latents.store import Latents, read_index
from dit.runs.card import ModelCard
from dit.training.checked_data import open_checked
from dit.utils.hub import is_cached

IMAGES, CLASSES = 1_281_167, 1000  # of ILSVRC 2012, training set
SD_VAE_NAMES = {"stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-mse"}  # of one shape
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

    def encode(self, images: Tensor) -> Tensor:
        # digits are encoded when they are opened; any values do
        height, width = (side // self.factor for side in images.shape[-2:])
        return torch.zeros(len(images), 2 * self.channels, height, width)


@dataclass
class AssumedLatents:
    """A source of latents that can be described, not read."""

    shape: tuple[int, int, int]
    classes: list[str]
    flips: bool
    labels: np.ndarray

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        raise NotImplementedError

    def statistics(self) -> tuple[Tensor, Tensor]:
        # any values do: the cost does not depend on them
        return torch.zeros(self.shape[0]), torch.ones(self.shape[0])


class AssumedImageNet(AssumedLatents):
    """Latents of ImageNet's training set, which is not on this disk."""


def load_or_assume_source(
    config: TrainConfig,
    autoencoder: Autoencoder,
    last: Path | None,
    before: ModelCard | None,
    ranks: Ranks,
    images: Images | None = None,
) -> Latents:
    """Return the data; a dry run of ImageNet's presets assumes it where their --data is missing.

    Args:
        last: the checkpoint to continue from. It was trained on data, which must not be assumed.
        before: card of that run, or of the one to be guided, whose classes the data have.
        images: that Python code passed, instead of those that --data names.
    """
    missing = config.dry_run and not last and not dataset_exists(config.data)
    if missing and names_imagenet(config):
        names = before.classes if before else [str(i) for i in range(CLASSES)]
        shape = autoencoder.latent_shape(config.image_size)
        labels = np.arange(IMAGES) % len(names)
        return AssumedImageNet(shape, names, config.flip is not False, labels)

    source = open_checked(config, autoencoder, ranks, last, images)
    if before:
        keep_class_order(source, before.classes)
    if isinstance(autoencoder, AssumedAutoencoder):
        # images cannot be encoded without weights
        return AssumedLatents(source.shape, source.classes, source.flips, source.labels)
    return source


def names_imagenet(config: TrainConfig) -> bool:
    """Whether --data is what a preset for ImageNet sets; any other name may be mistyped."""
    preset = PRESETS.get(config.preset)
    if preset is None or not config.preset.startswith("imagenet"):
        return False
    return config.data == preset().data and config.conditioning != "text"


def load_or_assume_autoencoder(
    config: TrainConfig, before: ModelCard | None, device: torch.device
) -> Autoencoder:
    """Return the autoencoder, or a known shape in its place where it is not on this disk."""
    local = Path(config.vae).expanduser().is_dir()
    if local or config.vae not in SD_VAE_NAMES or is_cached(config.vae, (CONFIG, WEIGHTS)):
        return load_autoencoder(config.vae, device)

    from diffusers import AutoencoderKL

    # A run or latents may be found though the autoencoder is not: they say which weights are meant.
    checksum = before.vae_sha256 if before else None
    if holds_latents(Path(config.data)):
        checksum = read_index(Path(config.data)).checksum
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
