"""Flags of everything that makes images of noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dit.config.validation import (
    NO_CLASSIFIER,
    NOT_DDIM,
    NOTHING_GUIDED,
    require_range,
    require_sides,
    require_use,
    require_words,
)
from dit.errors import UserError

PACE = ("batch_size", "compile")  # flags that images do not depend on


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How noise becomes an image."""

    sampler: Literal["auto", "ddpm", "ddim", "euler", "heun", "dpmpp_2m"] = "auto"
    """auto: dpmpp_2m for flow matching, ddpm for the DDPM processes."""
    steps: int | None = None
    """Sampling steps (heun calls the network twice in each); unless given, 25, and 250 for ddpm."""
    spacing: Literal["uniform", "cosine"] = "uniform"
    """Times of the steps: evenly spread, or for few steps denser near noise and near data: quantiles of Beta(1/2, 1/2),
    after 2407.12173 with exponents 1/2."""
    cfg_scale: float = 1.0
    """Classifier-free guidance: 1 is none."""
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Guide only at times in this interval: 0 is data, 1 is noise (2404.07724)."""
    cfg_channels: int | None = None
    """Guide only the first channels; 3 is what the original DiT release does; all unless given."""
    eta: float = 0.0
    """With --sampler ddim, its noise: 0 is deterministic, 1 is ancestral."""
    variance: Literal["auto", "small", "large", "learned"] = "auto"
    """Variance of ddpm steps; auto: learned where the network has it, else small."""
    guide: Path | None = None
    """Autoguidance (2406.02507): --cfg-scale extrapolates from this weaker run or checkpoint of the same latents and
    process instead of the null class."""
    classifier: Path | None = None
    """Classifier guidance (2105.05233): a run of `dit train-classifier` on the same latents and process."""
    classifier_scale: float = 1.0
    """Weight of the classifier's gradient."""
    image_size: int | tuple[int, int] | None = None
    """Side, or height and width, of the images where it is not that of training: positions are interpolated."""
    seed: int = 0
    """Image i is made from (seed, i) alone, whatever the batch size or the number of ranks."""
    batch_size: int = 64
    """Images per network call and rank; does not change the images."""
    block_cache: int | None = None
    """Compute the middle blocks of a DiT in one of so many network calls, such as 2, and reuse in the others what they
    did to the tokens (2406.01125): faster, and the images change a little. Unless given, always compute."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto takes bf16 where the hardware has it. Images of fp32 and bf16 differ slightly."""
    compile: bool | None = None
    """Compile the network with torch.compile, which takes a minute before the first image and pays for
    many; unless given, off. Images stay the same but for rounding."""

    def __post_init__(self) -> None:
        require_range(self, ("steps",), lambda v: v is None or v > 0, "a number above 0")
        require_range(self, ("batch_size",), lambda v: v > 0, "a number above 0")
        require_range(self, ("cfg_scale", "classifier_scale"), lambda v: v >= 0, "0 or more")
        require_range(self, ("eta",), lambda v: 0 <= v <= 1, "a number from 0 to 1")
        require_sides(self)
        require_range(self, ("block_cache",), lambda v: v is None or v > 1, "2 or more")
        require_range(self, ("seed",), lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")
        require_range(
            self,
            ("cfg_interval",),
            lambda v: 0 <= v[0] <= v[1] <= 1,
            "two times 0 <= low <= high <= 1",
        )
        require_range(self, ("cfg_channels",), lambda v: v is None or v > 0, "a number above 0")
        require_use(
            self, ("guide", "cfg_interval", "cfg_channels"), self.cfg_scale != 1, *NOTHING_GUIDED
        )
        require_use(
            self, ("eta",), self.sampler == "ddim", f"with --sampler {self.sampler}", *NOT_DDIM
        )
        require_use(self, ("classifier_scale",), self.classifier is not None, *NO_CLASSIFIER)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplerConfig):
    """Sample images from a trained run: a labelled grid, or many images in a folder or an .npz file."""

    run: Path
    """Run directory, checkpoint directory, or a file of EMA weights (.safetensors)."""
    classes: str | None = None
    """Class ids such as 0,1,2, taken in turn; unless given, all (in a grid at most 16)."""
    num_samples: int | None = None
    """Number of images for --out; unless given, a grid with some images of each class."""
    prompt: tuple[str, ...] | None = None
    """Captions to draw, for a run with --conditioning text, such as "a seven" "a one"."""
    negative_prompt: str = ""
    """What --cfg-scale leads away from, for a run with --conditioning text."""
    per_class: int = 8
    """Images of each class, or of each prompt, in the grid."""
    out: Path | None = None
    """Grid: a .png file; unless given, in the run's samples/, named by the settings. With --num-samples: the folder to
    fill."""
    format: Literal["png", "npz"] = "png"
    """With --num-samples: one .png an image, or one samples.npz."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_words(self)
        require_range(self, ("per_class",), lambda v: v > 0, "a number above 0")
        require_range(self, ("num_samples",), lambda v: v is None or v > 0, "a number above 0")
        count = self.num_samples
        require_use(
            self,
            ("per_class",),
            count is None,
            f"with --num-samples {count}",
            "a grid",
            "drop --num-samples",
        )
        require_use(
            self,
            ("format",),
            count is not None,
            "without --num-samples",
            "many images",
            "pass --num-samples 1000",
        )
        if self.prompt and self.classes is not None:
            raise UserError(
                f"--prompt {self.prompt[0]!r} with --classes {self.classes}",
                "one of the two",
                "drop one",
            )
        if self.negative_prompt and (self.cfg_scale == 1 or self.guide):
            other = f"--guide {self.guide}" if self.guide else f"--cfg-scale {self.cfg_scale:g}"
            raise UserError(
                f"--negative-prompt {self.negative_prompt!r} with {other}",
                "a run with --conditioning text, --cfg-scale above 1 and no --guide, for guidance to lead "
                "away from the prompt",
                "pass --cfg-scale 2, drop --guide, or drop --negative-prompt",
            )


@dataclass(frozen=True, kw_only=True)
class ShowConfig(SamplerConfig):
    """Draw how a run noises its data or makes images of noise, with what it predicts and attends to on the way."""

    direction: Positional[Literal["forward", "backward"]]
    """forward: images of the run's own data, noised, and the prediction of each in one step; backward: sampling."""
    run: Positional[Path]
    """Run directory, checkpoint directory, or a file of EMA weights (.safetensors)."""
    classes: str | None = None
    """Class ids such as 0,1,2, taken in turn; unless given, some of all."""
    prompt: tuple[str, ...] | None = None
    """Captions to draw, backward, for a run with --conditioning text."""
    num_images: int = 4
    """Images, two rows each; backward, those that sample.py makes with the same settings and --num-samples."""
    times: str = "8"
    """How many times to draw, evenly spread, such as 8, or which, such as 0.2,0.5: 0 is data, 1 is noise."""
    layers: str | None = None
    """Layers of a DiT whose attention to draw, such as 0,5, counted from 0; unless given, four, evenly spread."""
    token: tuple[int, int] | None = None
    """Row and column of the patch whose attention to draw, counted from 0; unless given, the middle."""
    out: Path | None = None
    """Folder of the pictures; unless given, show/ in the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_words(self)
        require_range(self, ("num_images",), lambda v: v > 0, "a number above 0")
        require_range(
            self, ("token",), lambda v: v is None or min(v) >= 0, "a row and a column, 0 or more"
        )
        other = (
            "forward"
            if self.direction == "forward"
            else self.classes and f"--classes {self.classes}"
        )
        if self.prompt and other:
            raise UserError(
                f"--prompt {self.prompt[0]!r} with {other}", "one of the two", "drop --prompt"
            )
