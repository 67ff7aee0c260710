"""Flags of the way from images to latents: training an autoencoder, and encoding with one."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dit.config.validation import require_range, require_sides
from dit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Encode images to latents once, so that training need not; continues where it was interrupted."""

    data: str
    """`digits`; a folder of images, flat or with one subfolder per class; WebDataset shards, by their folder or a
    pattern such as 'train-{0000..0009}.tar'; a data set of Hugging Face: hf:OWNER/NAME, hf:OWNER/NAME:SPLIT or
    hf:OWNER/NAME/CONFIG:SPLIT of the hub, a folder of save_to_disk, a folder or pattern of .parquet files."""
    out: Path
    """Folder for the latent shards."""
    vae: str = "digits"
    """Autoencoder, as in train.py."""
    image_size: int | tuple[int, int] = 256
    """Side of the images in pixels, or their height and width."""
    captions: bool = False
    """Keep captions, for --conditioning text: those of digits, of the folder's metadata.jsonl, of .txt or .json in tar
    shards, or of a column of texts."""
    image_column: str | None = None
    """Column of a data set, or extension in tar shards, that is the image, where several could be."""
    label_column: str | None = None
    """Column of a data set, or extension or key of .json in tar shards, that is the class or, with --captions, the
    caption, where it has another name than usual."""
    streaming: bool = False
    """Read a data set of Hugging Face from front to back, without a copy on the disk; every rank reads all of it."""
    flip: bool | None = None
    """Store the mirrored image too; unless given, on where the data allows it (never for digits)."""
    batch_size: int = 64
    """Images per call of the encoder and rank."""
    shard_size: int = 10_000
    """Images in one shard file."""

    def __post_init__(self) -> None:
        require_range(self, ("batch_size", "shard_size"), lambda v: v > 0, "a number above 0")
        require_sides(self)


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Train a first stage on your own images: a KL or VQ autoencoder for --vae of train.py (2112.10752).

    There are no checkpoints in between: a training that was stopped starts over.
    """

    out: Path
    """Folder for config.json and the weights, in diffusers' layout, and for the report; new or empty."""
    kind: Literal["kl", "vq"] = "kl"
    """kl: Gaussian latents, held near the standard normal; vq: latents that the decoder rounds to a codebook's."""
    data: str = "digits"
    """`digits`, or a folder of images, with or without one subfolder per class."""
    image_size: int | tuple[int, int] = 32
    """Side of the images in pixels, or their height and width."""

    # -- network ---------------------------------------------------------------------------------------------
    channels: tuple[int, ...] = (16, 32, 32)
    """Width at each resolution, multiples of 8; each but the last halves the sides."""
    latent_channels: int = 4
    """Channels of a latent."""
    codebook_size: int | None = None
    """vq: entries of the codebook; 512 unless given."""
    codebook_dim: int | None = None
    """vq: width of an entry, and so the channels that diffusion sees; --latent-channels unless given."""

    # -- loss ------------------------------------------------------------------------------------------------
    kl_weight: float | None = None
    """kl: weight of the KL divergence per latent value; larger is smoother, smaller is sharper; 1e-3 unless given."""
    commitment: float | None = None
    """vq: weight of the pull of latents to their entries (1711.00937, Eq. 3); 0.25 unless given."""
    lpips: Path | None = None
    """Add the perceptual loss LPIPS (1801.03924), on torchvision's VGG16: its file of weights, .pth or .safetensors."""
    lpips_weight: float | None = None
    """Weight of --lpips; 1 unless given."""
    gan_weight: float = 0.0
    """Weight of a patch discriminator's verdict (1611.07004, 2012.09841) beside the reconstruction; 0: none."""
    gan_start: int | None = None
    """Step from which the discriminator plays; half of --steps unless given."""

    # -- training --------------------------------------------------------------------------------------------
    steps: int = 1200
    """Optimizer steps."""
    batch_size: int = 32
    """Images per step."""
    lr: float = 4e-3
    """Peak learning rate of AdamW, reached after a tenth of the steps; a cosine to zero follows."""
    shift: int = 2
    """Augmentation: random shifts of up to this many pixels."""
    held_out: float = 0.1
    """Share of the images, at most 5,000 of them, kept for the measurement of quality."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; auto takes bf16 where the hardware has it."""
    seed: int = 0
    """Seed of weights, split, order, shifts and noise."""
    extractor: str = "auto"
    """Feature network of the Fréchet distance between held-out images and their reconstructions, as in evaluate.py."""
    weights: str | None = None
    """File of that network's weights, for machines that can not download them."""

    def __post_init__(self) -> None:
        require_range(
            self,
            ("steps", "batch_size", "lr", "latent_channels"),
            lambda v: v > 0,
            "a number above 0",
        )
        require_range(self, ("gan_weight", "shift"), lambda v: v >= 0, "0 or more")
        require_range(
            self,
            ("kl_weight", "commitment", "lpips_weight", "gan_start"),
            lambda v: v is None or v >= 0,
            "0 or more",
        )
        require_range(self, ("codebook_size",), lambda v: v is None or v > 1, "2 or more")
        require_range(self, ("codebook_dim",), lambda v: v is None or v > 0, "a number above 0")
        require_range(self, ("held_out",), lambda v: 0 < v < 1, "a number in (0, 1)")
        require_range(self, ("seed",), lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")
        require_range(
            self,
            ("channels",),
            lambda v: v and all(width > 0 and width % 8 == 0 for width in v),
            "multiples of 8, such as 16 32 32",
        )
        require_sides(self)
        _require_kind(self)

    def resolved(self) -> "VaeConfig":
        """With the values that flags of its kind, and of the losses that are on, stand for."""
        defaults: dict[str, Any] = dict(OF_KIND[self.kind])
        if self.kind == "vq":
            defaults["codebook_dim"] = self.latent_channels
        if self.lpips:
            defaults["lpips_weight"] = 1.0
        if self.gan_weight:
            defaults["gan_start"] = self.steps // 2
        return dataclasses.replace(
            self, **{k: v for k, v in defaults.items() if getattr(self, k) is None}
        )


OF_KIND: dict[str, dict[str, Any]] = {
    "kl": {"kl_weight": 1e-3},
    "vq": {"codebook_size": 512, "codebook_dim": None, "commitment": 0.25},
}
"""Flags of VaeConfig that one kind of first stage has alone, and what they stand for."""


def _require_kind(config: VaeConfig) -> None:
    """Refuse flags of the other kind, and of losses that are off."""
    for kind, names in OF_KIND.items():
        for name in names:
            if kind != config.kind and getattr(config, name) is not None:
                flag = "--" + name.replace("_", "-")
                given = f"--kind {config.kind} with {flag} {getattr(config, name)}"
                raise UserError(
                    given, f"{flag} with --kind {kind}", f"drop {flag}, or pass --kind {kind}"
                )
    for flag, value, other, on in (
        ("--lpips-weight", config.lpips_weight, "--lpips FILE", config.lpips is not None),
        ("--gan-start", config.gan_start, "--gan-weight", config.gan_weight > 0),
    ):
        if value is not None and not on:
            raise UserError(
                f"{flag} {value} without {other}",
                f"{flag} with {other}",
                f"pass {other}, or drop {flag}",
            )
    if config.gan_start is not None and config.gan_start >= config.steps:
        raise UserError(
            f"--gan-start {config.gan_start} with --steps {config.steps}",
            "a step before the last",
            "pass a smaller --gan-start, or more --steps",
        )
