"""Flags of everything that makes images from noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from dit.config.validation import (
    NO_CLASSIFIER,
    NOT_DDIM,
    NOT_NEGATIVE,
    NOTHING_GUIDED,
    POSITIVE,
    POSITIVE_OR_NONE,
    SAMPLING_STEPS,
    SEED,
    TWO_OR_MORE,
    Range,
    flag_of,
    require_none_of,
    require_use,
    require_values,
    require_words,
)

INTERNAL = Path("internal")  # value of --guide: the run's own inner head
PERFORMANCE_FLAGS = ("batch_size", "compile")  # settings that images do not depend on


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How to turn noise into an image."""

    # -- sampler ---------------------------------------------------------------------------------
    sampler: Literal["auto", "ddpm", "ddim", "euler", "heun", "dpmpp_2m"] = "auto"
    """auto: dpmpp_2m for flow matching, ddpm for the DDPM processes, euler for --objective
    meanflow: it takes the average velocity of each step, the others take velocities at times."""
    steps: int | None = None
    """Sampling steps (heun calls the network twice in each); unless given, 25, 250 for ddpm, and 2
    for euler with --objective meanflow, which also takes 1."""
    spacing: Literal["uniform", "cosine"] = "uniform"
    """Times of the steps. cosine: denser near noise and near data, for few steps; quantiles of
    Beta(1/2, 1/2), after 2407.12173 with exponents 1/2."""

    # -- guidance --------------------------------------------------------------------------------
    cfg_scale: float = 1.0
    """Scale of classifier-free guidance; 1: none."""
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Guide only at times in this interval: 0 is data, 1 is noise (2404.07724)."""
    cfg_channels: int | None = None
    """Guide only the first channels, as the original DiT release does with 3; all unless given."""
    eta: float = 0.0
    """With --sampler ddim, its noise: 0 is deterministic, 1 is ancestral."""
    variance: Literal["auto", "small", "large", "learned"] = "auto"
    """Variance of ddpm steps; auto: learned where the network has it, else small."""
    guide: Path | None = None
    """Autoguidance (2406.02507): --cfg-scale extrapolates from this weaker run or checkpoint, not
    from the null class. It must have the same latents and process. internal: from the inner head of
    a run that was trained with --inner-head, in the same call (2512.24176)."""
    classifier: Path | None = None
    """Classifier guidance (2105.05233): a run of `dit train-classifier` with the same latents and
    process."""
    classifier_scale: float = 1.0
    """Weight of the classifier's gradient."""

    # -- images ----------------------------------------------------------------------------------
    image_size: int | tuple[int, int] | None = None
    """Side, or height and width, of the images; unless given, that of training. Position embeddings
    are interpolated."""
    seed: int = 0
    """Image i depends on (seed, i) alone, whatever the batch size or the number of ranks."""

    # -- speed -----------------------------------------------------------------------------------
    batch_size: int = 64
    """Images per network call and rank; does not change the images."""
    block_cache: int | None = None
    """Compute the middle blocks of a DiT in one of this many network calls, such as 2, and reuse
    their change of the tokens in the others (2406.01125): faster, with slightly other images.
    Unless given, always compute."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 where the hardware has it. Images differ slightly."""
    compile: bool | None = None
    """Compile the network with torch.compile: a minute before the first image, for faster calls.
    Unless given, off. Images are the same but for rounding."""

    def __post_init__(self) -> None:
        require_values(self, SAMPLER_RANGES, steps=SAMPLING_STEPS)
        guided = self.cfg_scale != 1
        require_use(self, ("guide", "cfg_interval", "cfg_channels"), guided, *NOTHING_GUIDED)
        sampler = f"with --sampler {self.sampler}"
        require_use(self, ("eta",), self.sampler == "ddim", sampler, *NOT_DDIM)
        require_use(self, ("classifier_scale",), self.classifier is not None, *NO_CLASSIFIER)


SAMPLER_RANGES: dict[tuple[str, ...], Range] = {
    ("steps", "cfg_channels"): POSITIVE_OR_NONE,
    ("batch_size",): POSITIVE,
    ("cfg_scale", "classifier_scale"): NOT_NEGATIVE,
    ("eta",): (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    ("block_cache",): TWO_OR_MORE,
    ("seed",): SEED,
    ("cfg_interval",): (lambda v: 0 <= v[0] <= v[1] <= 1, "two times 0 <= low <= high <= 1"),
}
"""Ranges of the flags of SamplerConfig."""
SAMPLE_RANGES: dict[tuple[str, ...], Range] = {
    **SAMPLER_RANGES,
    ("per_class",): POSITIVE,
    ("num_samples",): POSITIVE_OR_NONE,
}
SHOW_RANGES: dict[tuple[str, ...], Range] = {
    **SAMPLER_RANGES,
    ("num_images",): POSITIVE,
    ("token",): (lambda v: v is None or min(v) >= 0, "a row and a column, 0 or more"),
}


def require_captions_fit(config: Any) -> None:
    """Refuse --prompt beside --classes, and --negative-prompt where nothing leads away from it."""
    prompt = config.prompt[0] if config.prompt else ""
    other = f"--guide {config.guide}" if config.guide else f"--cfg-scale {config.cfg_scale:g}"
    require_none_of(
        [
            (
                prompt and config.classes is not None,
                f"--prompt {prompt!r} with --classes {' '.join(config.classes or ())}",
                "one of the two",
                "drop one",
            ),
            (
                config.negative_prompt and (config.cfg_scale == 1 or config.guide),
                f"--negative-prompt {config.negative_prompt!r} with {other}",
                "a run with --conditioning text, --cfg-scale above 1 and no --guide",
                "pass --cfg-scale 2, drop --guide, or drop --negative-prompt",
            ),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplerConfig):
    """Sample images from a trained run: a labelled grid, or a folder or .npz file of many."""

    # -- images ----------------------------------------------------------------------------------
    run: Path
    """Run directory, checkpoint directory, file of EMA weights (.safetensors), folder of
    `dit export` or of a DiT of diffusers, or OWNER/NAME of the Hugging Face hub."""
    classes: tuple[str, ...] | None = None
    """Names or ids of classes such as cat dog or 0,1,2, taken in turn; unless given, all that have
    images (in a grid at most 16)."""
    num_samples: int | None = None
    """Number of images for --out; unless given, a grid with some images of each class."""
    prompt: tuple[str, ...] | None = None
    """Captions to draw, for a run with --conditioning text, such as "a seven" "a one"."""
    negative_prompt: str = ""
    """Caption that --cfg-scale leads away from, for a run with --conditioning text."""
    per_class: int = 8
    """Images of each class, or of each prompt, in the grid."""
    out: Path | None = None
    """Grid: a .png file; unless given, in the run's samples/, named by the settings. With
    --num-samples: the folder to fill."""
    format: Literal["png", "npz"] = "png"
    """With --num-samples: one .png an image, or one samples.npz."""

    def __post_init__(self) -> None:
        require_values(self, SAMPLE_RANGES, steps=SAMPLING_STEPS)
        super().__post_init__()
        require_words(self)
        grid, count = self.num_samples is None, f"with --num-samples {self.num_samples}"
        require_use(self, ("per_class",), grid, count, "a grid", "drop --num-samples")
        many = "without --num-samples", "many images", "pass --num-samples 1000"
        require_use(self, ("format",), not grid, *many)

        require_captions_fit(self)


@dataclass(frozen=True, kw_only=True)
class ShowConfig(SamplerConfig):
    """Draw how a run noises images or makes them, with its predictions and attention maps."""

    # -- pictures --------------------------------------------------------------------------------
    direction: Positional[Literal["forward", "backward"]]
    """forward: images of the run's own data, noised, and the prediction from each; backward:
    sampling."""
    run: Positional[Path]
    """Run directory, checkpoint directory, file of EMA weights (.safetensors), folder of
    `dit export` or of a DiT of diffusers, or OWNER/NAME of the Hugging Face hub."""
    classes: tuple[str, ...] | None = None
    """Names or ids of classes such as cat dog or 0,1,2, taken in turn; unless given, some of
    all."""
    prompt: tuple[str, ...] | None = None
    """Captions to draw, backward, for a run with --conditioning text."""
    num_images: int = 4
    """Number of images, two rows each; backward, the first that sample.py --num-samples makes."""
    times: str = "8"
    """Number of times to draw, evenly spread, such as 8; or the times, such as 0.2,0.5: 0 is data,
    1 is noise."""
    layers: str | None = None
    """Layers of a DiT whose attention to draw, such as 0,5, counted from 0; unless given, four."""
    token: tuple[int, int] | None = None
    """Row and column of the patch whose attention to draw, counted from 0; unless given, the
    middle."""
    out: Path | None = None
    """Folder of the pictures; unless given, show/ in the run."""

    def __post_init__(self) -> None:
        require_values(self, SHOW_RANGES, steps=SAMPLING_STEPS)
        super().__post_init__()
        require_words(self)

        other = flag_of(self, "classes") if self.classes else ""
        if self.direction == "forward":
            other = "forward"
        given = f"--prompt {(self.prompt or ('',))[0]!r} with {other}"
        require_none_of([(self.prompt and other, given, "one of the two", "drop --prompt")])
