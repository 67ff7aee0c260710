"""Flags of the first stage: training an autoencoder, and encoding images with one."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dit.config.flag_names import flag_name
from dit.config.validation import (
    NOT_NEGATIVE,
    NOT_NEGATIVE_OR_NONE,
    POSITIVE,
    POSITIVE_OR_NONE,
    SEED,
    TWO_OR_MORE,
    Range,
    require_none_of,
    require_use,
    require_values,
)
from dit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Encode images to latents, once for all trainings; continue if interrupted."""

    # -- data ------------------------------------------------------------------------------------
    data: str
    """`digits`; a folder of images, flat or with one subfolder per class; WebDataset shards, by
    their folder or a pattern such as 'train-{0000..0009}.tar'; a data set of Hugging Face:
    hf:OWNER/NAME, hf:OWNER/NAME:SPLIT or hf:OWNER/NAME/CONFIG:SPLIT of the hub, a folder of
    save_to_disk, a folder or pattern of .parquet files; or MODULE:CLASS, as in train.py."""
    out: Path
    """Folder for the latent shards."""
    vae: str | None = None
    """Autoencoder, as in train.py; unless given, that of the latents in --out, else digits for
    digits and what suits the images for others, as in train.py."""
    image_size: int | tuple[int, int] | None = None
    """Side of the images in pixels, or their height and width; unless given, that of the latents
    in --out, else 32 for digits and what suits other images, as in train.py."""
    captions: bool = False
    """Keep captions, for --conditioning text: those of digits, of the folder's metadata.jsonl, of
    .txt or .json in tar shards, or of a column of texts."""
    image_column: str | None = None
    """Column of a data set, or extension in tar shards, of the image, if there are several."""
    label_column: str | None = None
    """Column of a data set, or extension or key of .json in tar shards, of the class or, with
    --captions, the caption, if it has an unusual name. In tar shards also `folder` or `tar`, whose
    name is the class; in a folder with metadata.jsonl the key of the class."""
    num_classes: int | None = None
    """0: encode no classes, for unconditional training; labels are ignored."""
    streaming: bool = False
    """Read a data set of Hugging Face in order, without a copy on the disk; every rank reads all of
    it."""
    skip_damaged: bool = False
    """Leave out images that cannot be read, and list them in skipped.txt."""
    flip: bool | None = None
    """Also store the mirrored image; unless given, where the data allows it (never for digits)."""

    # -- run -------------------------------------------------------------------------------------
    batch_size: int = 64
    """Images per call of the encoder and rank."""
    shard_size: int = 10_000
    """Images in one shard file."""

    def __post_init__(self) -> None:
        require_values(self, ENCODE_RANGES)
        unlabelled = "with --num-classes 0", "classes or captions", "drop --num-classes"
        require_use(self, ("label_column",), self.num_classes is None, *unlabelled)
        if self.captions and self.num_classes == 0:
            raise UserError("--captions with --num-classes 0", "one of the two", "drop one")
        if self.streaming and self.skip_damaged:
            raise UserError(
                "--skip-damaged with --streaming",
                "images that are checked before the first is encoded, which a stream's are not",
                "drop one of the two",
            )


ENCODE_RANGES: dict[tuple[str, ...], Range] = {
    ("batch_size", "shard_size"): POSITIVE,
    ("num_classes",): (
        lambda v: v in (None, 0),
        "0, or no --num-classes to count them in the data",
    ),
}
"""Ranges of the flags of EncodeConfig."""


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Train a KL or VQ autoencoder on your own images, for --vae of train.py (2112.10752)."""

    # -- data ------------------------------------------------------------------------------------
    out: Path
    """New or empty folder for config.json and the weights, in diffusers' layout, and the report."""
    resume: str | None = None
    """Continue a training that was stopped: its folder, or `auto` to continue --out if it has a
    checkpoint."""
    kind: Literal["kl", "vq"] = "kl"
    """kl: Gaussian latents, near the standard normal; vq: latents that the decoder rounds to a
    codebook."""
    data: str = "digits"
    """`digits`, or a folder of images, with or without one subfolder per class."""
    skip_damaged: bool = False
    """Leave out images that cannot be read."""
    image_size: int | tuple[int, int] = 32
    """Side of the images in pixels, or their height and width; unless given, 32 for digits, and for
    a folder the largest of 256, 128, 64 and 32 that its images have, at most 64 on a CPU."""

    # -- network ---------------------------------------------------------------------------------
    channels: tuple[int, ...] = (16, 32, 32)
    """Width at each resolution, multiples of 8; each but the last halves the sides."""
    latent_channels: int = 4
    """Channels of a latent."""
    codebook_size: int | None = None
    """vq: entries of the codebook; 512 unless given."""
    codebook_dim: int | None = None
    """vq: width of an entry, which is the channels of the latents; --latent-channels unless
    given."""

    # -- loss ------------------------------------------------------------------------------------
    kl_weight: float | None = None
    """kl: weight of the KL divergence per latent value; larger is smoother, smaller is sharper;
    1e-3 unless given."""
    commitment: float | None = None
    """vq: weight of the commitment loss (1711.00937, Eq. 3); 0.25 unless given."""
    lpips: Path | None = None
    """Add the perceptual loss LPIPS (1801.03924) on torchvision's VGG16: its weights file, .pth or
    .safetensors."""
    lpips_weight: float | None = None
    """Weight of --lpips; 1 unless given."""
    gan_weight: float = 0.0
    """Weight of a patch discriminator's loss (1611.07004, 2012.09841); 0: none."""
    gan_start: int | None = None
    """First step with the discriminator; half of --steps unless given."""

    # -- training --------------------------------------------------------------------------------
    steps: int = 1200
    """Optimizer steps."""
    batch_size: int = 32
    """Images per step."""
    lr: float = 4e-3
    """Peak learning rate of AdamW, reached after a tenth of the steps; a cosine to zero follows."""
    shift: int = 2
    """Augmentation: random shifts of up to this many pixels."""
    held_out: float = 0.1
    """Share of the images, at most 5,000, on which the quality is measured."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; auto: bf16 where the hardware has it."""
    seed: int = 0
    """Seed of weights, split, order, shifts and noise."""
    sample_every: int | None = None
    """Steps between pictures of held-out images above their reconstructions; 0: never; a quarter of
    --steps unless given."""
    ckpt_every: int = 200
    """Steps between checkpoints, of which the newest is kept until the training is complete; 0:
    only at the end."""
    extractor: str = "auto"
    """Feature network of the Fréchet distance between held-out images and their reconstructions, as
    in evaluate.py."""
    weights: str | None = None
    """Weights file of that network, for machines that cannot download it."""

    def __post_init__(self) -> None:
        require_values(self, RANGES)
        _require_read(self)

    def resolved(self) -> "VaeConfig":
        """Return a copy with the defaults that depend on other flags."""
        defaults: dict[str, Any] = dict(OF_KIND[self.kind])
        defaults["sample_every"] = max(1, self.steps // 4)
        if self.kind == "vq":
            defaults["codebook_dim"] = self.latent_channels
        if self.lpips:
            defaults["lpips_weight"] = 1.0
        if self.gan_weight:
            defaults["gan_start"] = self.steps // 2
        missing = {name: v for name, v in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


RANGES: dict[tuple[str, ...], Range] = {
    ("steps", "batch_size", "lr", "latent_channels"): POSITIVE,
    ("gan_weight", "shift", "ckpt_every"): NOT_NEGATIVE,
    ("kl_weight", "commitment", "lpips_weight"): NOT_NEGATIVE_OR_NONE,
    ("gan_start", "sample_every"): NOT_NEGATIVE_OR_NONE,
    ("codebook_size",): TWO_OR_MORE,
    ("codebook_dim",): POSITIVE_OR_NONE,
    ("held_out",): (lambda v: 0 < v < 1, "a number in (0, 1)"),
    ("seed",): SEED,
    ("channels",): (
        lambda v: v and all(width > 0 and width % 8 == 0 for width in v),
        "multiples of 8, such as 16 32 32",
    ),
}
"""Ranges of the flags of VaeConfig."""

OF_KIND: dict[str, dict[str, Any]] = {
    "kl": {"kl_weight": 1e-3},
    "vq": {"codebook_size": 512, "codebook_dim": None, "commitment": 0.25},
}
"""Flags of VaeConfig for one kind of first stage, and their defaults."""


def _require_read(config: VaeConfig) -> None:
    """Refuse flags of the other kind, and of losses that are off."""
    start, weight = config.gan_start, config.lpips_weight
    conflicts: list[tuple[object, str, str, str]] = []
    for kind, names in OF_KIND.items():
        for name in names:
            flag, value = flag_name(name), getattr(config, name)
            conflicts.append(
                (
                    kind != config.kind and value is not None,
                    f"--kind {config.kind} with {flag} {value}",
                    f"{flag} with --kind {kind}",
                    f"drop {flag}, or pass --kind {kind}",
                )
            )
    require_none_of(
        [
            *conflicts,
            (
                weight is not None and config.lpips is None,
                f"--lpips-weight {weight} without --lpips FILE",
                "--lpips-weight with --lpips FILE",
                "pass --lpips FILE, or drop --lpips-weight",
            ),
            (
                start is not None and not config.gan_weight,
                f"--gan-start {start} without --gan-weight",
                "--gan-start with --gan-weight",
                "pass --gan-weight, or drop --gan-start",
            ),
            (
                start is not None and start >= config.steps,
                f"--gan-start {start} with --steps {config.steps}",
                "a step before the last",
                "pass a smaller --gan-start, or more --steps",
            ),
        ]
    )
