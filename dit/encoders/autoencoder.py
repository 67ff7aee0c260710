"""Pixels <-> latents, by an autoencoder that is loaded and never trained."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dit.errors import UserError
from dit.utils.files import sha256
from dit.utils.hub import find_folder
from dit.utils.image_size import Size, sides, size_flag

BUNDLED = Path(__file__).parent.parent / "assets" / "digits-vae"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SUBFOLDERS = ("vae", "vqvae")  # of pipelines
DECODED = 16  # images at once
KINDS = ("AutoencoderKL", "VQModel")  # of diffusers


class Codec(Protocol):
    """What an autoencoder computes, before any normalisation."""

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [B, C, h, w] of z for pixels [B, 3, H, W] in [-1, 1]."""
        ...

    def pixels(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W], about in [-1, 1]."""
        ...


class IdentityCodec:
    """z is the pixels: for diffusion in pixel space."""

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels themselves, with deviation 0."""
        return pixels, torch.zeros_like(pixels)

    def pixels(self, z: Tensor) -> Tensor:
        """z unchanged."""
        return z


class KLCodec:
    """diffusers' AutoencoderKL: the posterior is a diagonal Gaussian."""

    def __init__(self, network: Any):
        self.network = network.eval().requires_grad_(False)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder says of the pixels."""
        dist = self.network.encode(pixels).latent_dist
        return dist.mean, dist.std

    def pixels(self, z: Tensor) -> Tensor:
        """The decoder's image of z."""
        return self.network.decode(z).sample


class VQCodec:
    """diffusers' VQModel: z is the encoder's vector, not yet rounded to the codebook; the decoder rounds.

    So diffusion may miss an entry by a little without any loss (2112.10752, section 3.1).
    """

    def __init__(self, network: Any):
        self.network = network.eval().requires_grad_(False)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder says of the pixels, with deviation 0."""
        z = self.network.encode(pixels).latents
        return z, torch.zeros_like(z)

    def pixels(self, z: Tensor) -> Tensor:
        """The decoder's image of the entries of the codebook that are nearest to z."""
        return self.network.decode(z).sample

    @property
    def codebook(self) -> Tensor:
        """The entries [K, C]."""
        return self.network.quantize.embedding.weight


def codec_of(network: Any) -> KLCodec | VQCodec:
    """What an AutoencoderKL or a VQModel computes; freezes it."""
    return (VQCodec if type(network).__name__ == "VQModel" else KLCodec)(network)


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """A frozen first stage in float32. Moments are what is stored; latents are what diffusion sees.

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

    @property
    def device(self) -> torch.device:
        """Where the autoencoder lives; `encode`, `draw` and `decode` bring their arguments there."""
        return self.shift.device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> moments float32 [B, 2C, h, w]: mean of z, then its deviation, unnormalised."""
        pixels = images.to(self.device).float() / 127.5 - 1
        return torch.cat(self.codec.posterior(pixels), dim=1)

    def draw(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Normalised latents [B, C, h, w] from moments [B, 2C, h, w] and standard normal noise [B, C, h, w]."""
        mean, std = moments.to(self.device).float().chunk(2, dim=1)
        return (mean + std * noise.to(self.device) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, h, w] -> uint8 [B, 3, H, W]; a few at once, for decoders take much memory."""
        return torch.cat([self._decode(few) for few in latents.split(DECODED)])

    def _decode(self, latents: Tensor) -> Tensor:
        pixels = self.codec.pixels(latents.to(self.device).float() / self.scale + self.shift)
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def with_statistics(
        self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
    ) -> "Autoencoder":
        """The same autoencoder, its latents normalised by these statistics of z, per channel [C].

        Raises:
            UserError: a channel that never varies, which no scale brings to unit deviation.
        """
        shift, deviation = _per_channel(mean, self.device), _per_channel(std, self.device)
        if not (deviation > 0).all():
            raise UserError(
                f"deviations {deviation.flatten().tolist()} of the latents' channels",
                "all above 0",
                "check that the images are not all alike, or pass --latent-norm vae",
            )
        return replace(self, shift=shift, scale=1 / deviation)

    def latent_shape(self, image_size: Size) -> tuple[int, int, int]:
        """(C, h, w) of the latents of images of this size.

        Raises:
            UserError: the factor does not divide the image size.
        """
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


def load_autoencoder(name: str, device: torch.device | str = "cpu") -> Autoencoder:
    """Load `digits` (bundled), `identity` (pixels), a local folder in diffusers' layout, or a hub name.

    A folder may hold the autoencoder itself or, as pipelines do, a `vae/` or `vqvae/` subfolder. Only safetensors are
    read.

    Raises:
        UserError: no such folder, files missing or damaged, neither an AutoencoderKL nor a VQModel, or the hub out of
            reach.
    """
    device = torch.device(device)
    if name == "identity":
        one = _per_channel([1.0] * 3, device)
        return Autoencoder(
            name=name, codec=IdentityCodec(), factor=1, channels=3, shift=0 * one, scale=one
        )
    folder = _locate(name)
    config, weights = _read_config(folder), folder / WEIGHTS
    network = _read_network(folder, config["_class_name"])
    mean, std = _statistics(config)
    channels = int(config.get("vq_embed_dim") or network.config.latent_channels)
    return Autoencoder(
        name=name,
        codec=codec_of(
            network.to(device, memory_format=torch.channels_last)
        ),  # as convolutions like it
        factor=2 ** (len(network.config.block_out_channels) - 1),
        channels=channels,
        shift=_per_channel(mean, device).expand(channels, 1, 1),
        scale=1 / _per_channel(std, device).expand(channels, 1, 1),
        checksum=sha256(weights),
    )


def _statistics(config: dict[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of z by which the autoencoder's author normalises, per channel or one for all."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return mean, std
    scaling = config.get("scaling_factor")
    return [config.get("shift_factor") or 0.0], [
        1 / (0.18215 if scaling is None else scaling)
    ]  # diffusers' default


def _locate(name: str) -> Path:
    """The folder that holds config.json, downloaded if need be."""
    if name == "digits":
        return BUNDLED
    files = (CONFIG, WEIGHTS)
    path = find_folder(
        "--vae",
        name,
        "`digits`, `identity`, a folder in diffusers' layout",
        f"the model's {CONFIG} and {WEIGHTS}",
        [*files, *(f"{folder}/{file}" for folder in SUBFOLDERS for file in files)],
    )
    for folder in (path, *(path / inside for inside in SUBFOLDERS)):
        if (folder / CONFIG).is_file():
            return folder
    raise UserError(
        f"--vae {name} has no {CONFIG}",
        f"{CONFIG} and {WEIGHTS} in the folder or in its subfolder vae",
        "check that the folder is an autoencoder in diffusers' layout",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / CONFIG} can not be read ({error})", "a JSON file", "copy it again"
        ) from error
    kind, channels = config.get("_class_name"), config.get("in_channels", 3)
    if kind not in KINDS or channels != 3:
        raise UserError(
            f"{folder / CONFIG} describes {kind} with {channels} image channels",
            f"an {' or a '.join(KINDS)} with 3 image channels",
            "choose another --vae",
        )
    return config


def _read_network(folder: Path, kind: str) -> Any:
    """The float32 network in `folder`; never a pickle, never a weight left at its random start."""
    import diffusers

    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"no {WEIGHTS} in {folder}",
            "weights in safetensors format",
            "copy that file there; pickled .bin weights are not read",
        )
    try:
        with _quiet():
            network, info = getattr(diffusers, kind).from_pretrained(
                folder,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors', diffusers' and torch's kinds of damage
        raise UserError(
            f"{folder / WEIGHTS} can not be loaded ({' '.join(str(error).split())[:200]})",
            "intact weights of the network in its config.json",
            "copy them again",
        ) from error
    if info["missing_keys"]:
        raise UserError(
            f"{folder / WEIGHTS} lacks {len(info['missing_keys'])} weights, as {info['missing_keys'][0]}",
            "all weights of the network in its config.json",
            "copy it again",
        )
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warning that a VQModel has no use for the statistics beside its settings: we do."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
