"""Pixels <-> latents, by a frozen autoencoder."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from dit.errors import UserError, one_line
from dit.utils.hub import absolute_if_local, find_folder
from dit.utils.image_size import Size, sides, size_flag
from dit.utils.stored_weights import (
    ANY_WEIGHTS,
    WEIGHTS,
    StoredWeights,
    find_stored_weights,
)
from dit.utils.typed_json import read_json

ASSETS = Path(__file__).parent.parent / "assets"
BUNDLED = {"digits": ASSETS / "digits-vae", "tiny": ASSETS / "tiny-vae"}
CONFIG = "config.json"
SUBFOLDERS = ("vae", "vqvae")  # of pipelines
KINDS = ("AutoencoderKL", "VQModel")  # of diffusers
LARGEST_SIZE = 1024  # layers of a block, or channels of a latent: more is damage
DECODE_BATCH = 16  # images: decoders take much memory
DEFAULT_SCALING = 0.18215  # diffusers' default, that of Stable Diffusion


class Codec(Protocol):
    """The computation of an autoencoder, without normalisation of latents."""

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation [B, C, h, w] of z for pixels [B, 3, H, W] in [-1, 1]."""
        ...

    def pixels(self, z: Tensor) -> Tensor:
        """Decode [B, C, h, w] to [B, 3, H, W], about in [-1, 1]."""
        ...


class IdentityCodec:
    """z is the pixels: for diffusion in pixel space."""

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return pixels, torch.zeros_like(pixels)

    def pixels(self, z: Tensor) -> Tensor:
        return z


class KLCodec:
    """diffusers' AutoencoderKL: the posterior is a diagonal Gaussian."""

    def __init__(self, network: Any):
        self.network = network.eval().requires_grad_(False)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        dist = self.network.encode(pixels).latent_dist
        return dist.mean, dist.std

    def pixels(self, z: Tensor) -> Tensor:
        return self.network.decode(z).sample


class VQCodec:
    """diffusers' VQModel: z is the encoder's vector before quantisation; the decoder quantises.

    So a small error of diffusion is without effect (2112.10752, section 3.1).
    """

    def __init__(self, network: Any):
        self.network = network.eval().requires_grad_(False)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        z = self.network.encode(pixels).latents
        return z, torch.zeros_like(z)

    def pixels(self, z: Tensor) -> Tensor:
        # diffusers' decode quantises first
        return self.network.decode(z).sample

    @property
    def codebook(self) -> Tensor:
        """The entries [K, C]."""
        return self.network.quantize.embedding.weight


def build_codec(network: Any) -> KLCodec | VQCodec:
    """Wrap an AutoencoderKL or a VQModel, and freeze it."""
    return VQCodec(network) if type(network).__name__ == "VQModel" else KLCodec(network)


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """A frozen first stage in float32. `dit encode` stores moments; diffusion works on latents.

    Attributes:
        factor: pixels per latent, along a side.
        channels: C, channels of a latent.
        checksum: SHA-256 of the weights; None where there are none.
        shift, scale: [C, 1, 1]; latents = (z - shift) * scale.
    """

    name: str
    codec: Codec
    factor: int
    channels: int
    shift: Tensor
    scale: Tensor
    checksum: str | None = None

    def image_bytes(self, size: Size) -> int:
        """Return what an image takes at least while it is encoded or decoded: pixels and, with a
        network, two activations of full size."""
        network = getattr(self.codec, "network", None)
        widths = network.config.block_out_channels if network else (0,)
        return 4 * math.prod(sides(size)) * (3 + 2 * widths[0])

    @property
    def location(self) -> str:
        """Its name; of a local folder the absolute path, to be found from anywhere."""
        return absolute_if_local(self.name)

    @property
    def device(self) -> torch.device:
        """The autoencoder's device, to which `encode`, `draw` and `decode` move their arguments."""
        return self.shift.device

    def to(self, device: torch.device) -> "Autoencoder":
        """Return it on a device, to which its network is moved."""
        if network := getattr(self.codec, "network", None):
            network.to(device)
        return replace(self, shift=self.shift.to(device), scale=self.scale.to(device))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 [B, 3, H, W] to moments float32 [B, 2C, h, w]: mean, then deviation of z."""
        pixels = images.to(self.device).float() / 127.5 - 1
        return torch.cat(self.codec.posterior(pixels), dim=1)

    def draw(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Sample normalised latents [B, C, h, w].

        Args:
            moments: [B, 2C, h, w].
            noise: standard normal [B, C, h, w].
        """
        mean, std = moments.to(self.device).float().chunk(2, dim=1)
        return (mean + std * noise.to(self.device) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents [B, C, h, w] to uint8 [B, 3, H, W], a few at a time."""
        return torch.cat([self._decode(part) for part in latents.split(DECODE_BATCH)])

    def _decode(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.device).float()
        pixels = self.codec.pixels(latents / self.scale + self.shift)
        scaled = (pixels + 1) * 127.5
        return scaled.round().clamp(0, 255).to(torch.uint8)

    def with_statistics(
        self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
    ) -> "Autoencoder":
        """Return this autoencoder with latents normalised by statistics of z, per channel [C]."""
        deviation = _per_channel(std, self.device)
        if not (deviation > 0).all():
            raise UserError(
                f"deviations {deviation.flatten().tolist()} of the latents' channels",
                "all above 0",
                "check that the images are not all alike, or pass --latent-norm vae",
            )
        return replace(self, shift=_per_channel(mean, self.device), scale=1 / deviation)

    def latent_shape(self, image_size: Size) -> tuple[int, int, int]:
        """Return (C, h, w) of the latents of images of this size; refuse one that does not fit."""
        height, width = sides(image_size)
        if height % self.factor or width % self.factor:
            raise UserError(
                f"{size_flag(image_size)} with --vae {self.name}, which shrinks by {self.factor}",
                f"a multiple of {self.factor}",
                "change --image-size",
            )
        return self.channels, height // self.factor, width // self.factor


def _per_channel(values: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device).reshape(-1, 1, 1)


# -- loading ---------------------------------------------------------------------------------------


class CodecConfig(TypedDict, total=False):
    """What is read of an autoencoder's config.json."""

    _class_name: str
    in_channels: int
    layers_per_block: int
    latent_channels: int
    vq_embed_dim: int | None
    scaling_factor: float | None
    shift_factor: float | None
    latents_mean: list[float] | None
    latents_std: list[float] | None


def load_autoencoder(name: str, device: torch.device | str = "cpu") -> Autoencoder:
    """Load `digits` or `tiny` (bundled), `identity` (pixels), a folder, or a hub name.

    A folder is in diffusers' layout. It may hold the autoencoder itself or, as pipelines do, a
    `vae/` or `vqvae/` subfolder. Only safetensors are read.
    """
    device = torch.device(device)
    if name == "identity":
        one = _per_channel([1.0] * 3, device)
        return Autoencoder(
            name=name, codec=IdentityCodec(), factor=1, channels=3, shift=0 * one, scale=one
        )
    folder = locate_autoencoder(name)
    config = _read_config(folder)
    stored = find_stored_weights(folder)
    network = _read_network(folder, config["_class_name"], stored)
    channels = config.get("vq_embed_dim") or network.config.latent_channels
    _check_statistics(folder / CONFIG, *_statistics(config), channels)
    return wrap_network(network, config, device, name, stored.checksum)


def wrap_network(
    network: Any, config: CodecConfig, device: torch.device, name: str, checksum: str | None
) -> Autoencoder:
    """Return an AutoencoderKL or a VQModel of diffusers, moved to the device and frozen, as ours.

    Args:
        config: of the network, with the statistics of its latents.
        name, checksum: of where its weights come from.
    """
    network = network.to(device, memory_format=torch.channels_last)  # faster convolutions
    channels = config.get("vq_embed_dim") or network.config.latent_channels
    mean, std = _statistics(config)
    return Autoencoder(
        name=name,
        codec=build_codec(network),
        factor=2 ** (len(network.config.block_out_channels) - 1),
        channels=channels,
        shift=_per_channel(mean, device).expand(channels, 1, 1),
        scale=1 / _per_channel(std, device).expand(channels, 1, 1),
        checksum=checksum,
    )


def _statistics(config: CodecConfig) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and deviation of z in a config, per channel or one for all."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return mean, std
    scaling = config.get("scaling_factor")
    scaling = DEFAULT_SCALING if scaling is None else scaling
    # no factor is 0: an infinite deviation is refused
    return [config.get("shift_factor") or 0.0], [1 / scaling if scaling else math.inf]


def _check_statistics(
    file: Path, mean: Sequence[float], std: Sequence[float], channels: int
) -> None:
    """Refuse statistics that are neither one for all channels nor one for each, or no deviation."""
    if any(len(values) not in (1, channels) for values in (mean, std)):
        raise UserError(
            f"{file} has {len(mean)} means and {len(std)} deviations of latents",
            f"one for all, or one for each of {channels} channels",
            "copy it again",
        )
    if not all(0 < value < math.inf for value in std):
        given = f"{file} scales latents by deviations {list(std)}"
        raise UserError(given, "numbers above 0", "copy it again")


def locate_autoencoder(name: str) -> Path:
    """Return the folder that holds config.json, downloaded if necessary; `identity` has none."""
    if name in BUNDLED:
        return BUNDLED[name]
    # shards and other precisions are downloaded only where the usual file is missing
    for files in ((CONFIG, WEIGHTS), (CONFIG, *ANY_WEIGHTS)):
        path = find_folder(
            "--vae",
            name,
            "`digits`, `tiny`, `identity`, a folder in diffusers' layout",
            f"the model's {CONFIG} and {WEIGHTS}",
            [*files, *(f"{folder}/{file}" for folder in SUBFOLDERS for file in files)],
        )
        places = (path, *(path / inside for inside in SUBFOLDERS))
        folder = next((place for place in places if (place / CONFIG).is_file()), None)
        if folder and any(folder.glob(ANY_WEIGHTS[0])):
            return folder
    if folder:
        return folder
    raise UserError(
        f"--vae {name} has no {CONFIG}",
        f"{CONFIG} and {WEIGHTS} in the folder or in its subfolder vae",
        "check that the folder is an autoencoder in diffusers' layout",
    )


def _read_config(folder: Path) -> CodecConfig:
    file = folder / CONFIG
    config = read_json(file, CodecConfig, "the configuration of an autoencoder", "copy it again")
    sizes = [config.get("layers_per_block", 1), config.get("latent_channels", 1)]
    if not all(0 < size <= LARGEST_SIZE for size in sizes):
        # diffusers would build layers until the memory is full
        raise UserError(
            f"{file} has layers_per_block {sizes[0]} and latent_channels {sizes[1]}",
            f"1 to {LARGEST_SIZE:,}",
            "copy it again",
        )
    kind, channels = config.get("_class_name"), config.get("in_channels", 3)
    if kind not in KINDS or channels != 3:
        raise UserError(
            f"{file} describes {kind} with {channels} image channels",
            f"an {' or a '.join(KINDS)} with 3 image channels",
            "choose another --vae",
        )
    return config


def _read_network(folder: Path, kind: str, stored: StoredWeights) -> Any:
    """Return the float32 network in `folder`; never unpickle, never keep a random weight."""
    import diffusers

    file = stored.listing
    try:
        with quiet_diffusers():
            network, info = getattr(diffusers, kind).from_pretrained(
                folder,
                use_safetensors=True,
                variant=stored.variant,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # of safetensors, diffusers and torch
        raise UserError(
            f"{file} cannot be loaded ({one_line(error)})",
            "intact weights of the network in its config.json",
            "copy them again",
        ) from error
    missing = info["missing_keys"]
    if missing:
        raise UserError(
            f"{file} lacks {len(missing)} weights, as {missing[0]}",
            "all weights of the network in its config.json",
            "copy it again",
        )
    return network


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    # diffusers warns that a VQModel ignores the latent statistics in its config; we use them
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
