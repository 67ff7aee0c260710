"""Flags of everything that scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dit.config.sampling import SAMPLER_RANGES, SamplerConfig
from dit.config.validation import (
    NO_CLASSIFIER,
    NOT_EMPTY,
    POSITIVE,
    POSITIVE_OR_NONE,
    SAMPLING_STEPS,
    SEED,
    TWO_OR_MORE,
    Range,
    require_use,
    require_values,
)
from dit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """What to compare samples with, and how."""

    # -- scores ----------------------------------------------------------------------------------
    reference: str | None = None
    """`digits`, a folder of images, tar shards, a data set of Hugging Face, latents of `dit encode`
    (their images count), or an .npz file of images or statistics; the run's own data unless
    given."""
    crop: bool | None = None
    """Crop the reference's images to the samples' size as ADM does; unless given, only the run's
    own data."""
    extractor: tuple[str, ...] = ("auto",)
    """Feature networks, one or several: inception, dinov2, colour-cnn, digits-cnn, MODULE:CLASS, or
    a name registered with torch-fidelity. auto: digits-cnn for digits; else inception, or
    colour-cnn (not FID, no download) on a CPU without Inception's weights."""
    weights: tuple[str, ...] = ()
    """Local weights of the feature network, where they cannot be downloaded: FILE, or NAME=FILE for
    several."""
    bootstrap: int = 50
    """Bootstrap replicates for the confidence interval of a Fréchet distance; 0: no interval."""
    cache: bool = True
    """Keep features of references in ~/.cache/dit (or $DIT_CACHE), named by content."""

    def __post_init__(self) -> None:
        require_values(self, SCORING_RANGES, steps=SAMPLING_STEPS)


SCORING_RANGES: dict[tuple[str, ...], Range] = {
    ("extractor",): NOT_EMPTY,
    ("bootstrap",): (lambda v: v == 0 or v >= 10, "0, or 10 or more"),
}
"""Ranges of the flags of ScoringConfig."""
EVAL_RANGES: dict[tuple[str, ...], Range] = {
    **SAMPLER_RANGES,
    **SCORING_RANGES,
    ("num_samples",): TWO_OR_MORE,
}
SWEEP_RANGES: dict[tuple[str, ...], Range] = {
    **SCORING_RANGES,
    ("batch_size",): POSITIVE,
    ("eta",): (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    ("cfg_channels",): POSITIVE_OR_NONE,
    ("num_samples",): TWO_OR_MORE,
    ("seed",): SEED,
}
STATS_RANGES: dict[tuple[str, ...], Range] = {
    ("batch_size",): POSITIVE,
    ("extractor",): NOT_EMPTY,
}
NLL_RANGES: dict[tuple[str, ...], Range] = {
    ("num_images", "probes", "batch_size"): POSITIVE,
    ("steps",): POSITIVE_OR_NONE,
    ("seed",): SEED,
}


@dataclass(frozen=True, kw_only=True)
class EvalConfig(SamplerConfig, ScoringConfig):
    """Score samples against a reference and write report.json, report.md and report.html."""

    # -- samples ---------------------------------------------------------------------------------
    run: Path | None = None
    """Run to sample from and score, as --run of sample.py."""
    samples: Path | None = None
    """Images to score instead: a folder or an .npz file."""
    num_samples: int | None = None
    """Images to sample from the run; unless given, as many as the reference has, at most 50,000."""
    classes: tuple[str, ...] | None = None
    """Names or ids of classes such as cat dog or 0,1,2, to sample and to keep of the reference;
    unless given, all that have images."""
    train_data: str | None = None
    """Images that samples may be copies of: `digits` or a folder, cropped to the samples' size;
    unless given, the reference, if it is the run's own data."""
    out: Path | None = None
    """Folder of the report; unless given, evaluation/ in the run, or SAMPLES-evaluation beside the
    samples."""

    def __post_init__(self) -> None:
        require_values(self, EVAL_RANGES, steps=SAMPLING_STEPS)
        SamplerConfig.__post_init__(self)
        ScoringConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ScoringConfig):
    """Score a grid of sampling settings on one run with the same seeds; continue if interrupted."""

    # -- settings --------------------------------------------------------------------------------
    run: Path
    """Run directory, checkpoint directory, file of EMA weights (.safetensors), folder of
    `dit export` or of a DiT of diffusers, or OWNER/NAME of the Hugging Face hub."""
    cfg_scale: str | None = None
    """Scales of classifier-free guidance: a list such as 1,1.5,2 or a range START:STOP:STEP with
    its end; unless given, 1:4:0.5, or 1 with --classifier or without a null class."""
    interval: str = "0-1"
    """Intervals of time to guide in, LOW-HIGH, such as 0-1,0.2-0.8: 0 is data, 1 is noise
    (2404.07724)."""
    steps: str | None = None
    """Sampling steps, a list or a range; unless given, the sampler's own number."""
    sampler: str = "auto"
    """Samplers, a list such as ddim,dpmpp_2m; auto as in sample.py."""
    ema_length: str | None = None
    """Lengths of the EMA (sigma_rel), a list or a range such as 0.02:0.1:0.02, for a run with
    --ema-lengths, as `dit ema` makes them; unless given, the run's own EMA."""
    cfg_channels: int | None = None
    """Guide only the first channels, as in sample.py."""
    guide: Path | None = None
    """Autoguidance by a weaker run, as in sample.py, at every --cfg-scale but 1."""
    classifier: Path | None = None
    """Classifier guidance by a run of `dit train-classifier`, as in sample.py."""
    classifier_scale: str | None = None
    """With --classifier: weights of its gradient, a list or a range such as 0:4:1; 0: none, 1
    unless given."""
    eta: float = 0.0
    """DDIM's noise: 0 is deterministic, 1 is ancestral."""
    variance: Literal["auto", "small", "large", "learned"] = "auto"
    """Variance of ddpm steps; auto: learned where the network has it, else small."""

    # -- samples ---------------------------------------------------------------------------------
    num_samples: int = 1000
    """Images for each setting."""
    image_size: int | tuple[int, int] | None = None
    """Side, or height and width, of the images, as in sample.py."""
    seed: int = 0
    """Image i depends on (seed, i) in every setting, so that no setting is luckier than another."""
    batch_size: int = 64
    """Images per network call and rank."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network."""
    out: Path | None = None
    """Folder of the results; unless given, sweep/ in the run."""
    keep_samples: bool = False
    """Keep the images of every setting, not only a grid of the first."""

    def __post_init__(self) -> None:
        require_values(self, SWEEP_RANGES, steps=SAMPLING_STEPS)
        super().__post_init__()
        require_use(self, ("classifier_scale",), self.classifier is not None, *NO_CLASSIFIER)


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Write the statistics of a data set's features, to use them as a reference."""

    data: str
    """`digits`, a folder of images (flat or one subfolder per class), tar shards, a data set of
    Hugging Face, or an .npz file of images."""
    out: Path
    """The .npz file to write."""
    image_size: int | tuple[int, int] | None = None
    """Crop images to this side, or height and width, as ADM does; unless given, no crop (digits:
    32). Tar shards and data sets of Hugging Face need it."""
    image_column: str | None = None
    """Column of the images of a data set of Hugging Face, or their ending in tar shards, such as
    png; unless given, the one of a usual name."""
    extractor: tuple[str, ...] = ("auto",)
    """Feature networks, as in evaluate.py."""
    weights: tuple[str, ...] = ()
    """Local weights of the feature network, as in evaluate.py."""
    batch_size: int = 64
    """Images per network call and rank."""
    cache: bool = True
    """Keep features in ~/.cache/dit (or $DIT_CACHE), named by content."""

    def __post_init__(self) -> None:
        require_values(self, STATS_RANGES)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Check whether scores of two reports may be compared; exit code 1 if not, or if unknown."""

    a: Positional[Path]
    """report.json of one evaluation, or its folder."""
    b: Positional[Path]
    """report.json of the other."""


@dataclass(frozen=True, kw_only=True)
class NllConfig:
    """Measure the likelihood of images under a pixel model (--vae identity), in bits/dim."""

    run: Path
    """Run directory, checkpoint directory, file of EMA weights (.safetensors), folder of
    `dit export` or of a DiT of diffusers, or OWNER/NAME of the Hugging Face hub."""
    data: str | None = None
    """Images to measure: `digits`, a folder, or latents of `dit encode --vae identity`; the run's
    own data unless given."""
    num_images: int = 100
    """Number of images, evenly spread over the data."""
    method: Literal["auto", "vlb", "ode"] = "auto"
    """vlb: the variational bound of a DDPM (2006.11239); ode: the density of the probability-flow
    ODE (2011.13456); auto: vlb for DDPM processes, ode for flow matching."""
    steps: int | None = None
    """Steps of the chain, all 1000 unless given; or of the ODE, with two network calls each, 50
    unless given."""
    variance: Literal["auto", "small", "large", "learned"] = "auto"
    """For vlb: variance of the steps; auto: learned where the network has it, else large."""
    probes: int = 1
    """Random vectors to estimate an image's divergence with, for ode (1810.01367)."""
    exact: bool = False
    """For ode: compute the divergence itself, with one gradient per pixel value and step."""
    seed: int = 0
    """Noise of image i depends on (seed, i) alone, whatever the batch size or number of ranks."""
    batch_size: int = 64
    """Images per network call and rank."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the network; bf16 is faster and less exact."""
    out: Path | None = None
    """The JSON file to write; unless given, nll.json in the run."""

    def __post_init__(self) -> None:
        require_values(self, NLL_RANGES, steps=SAMPLING_STEPS)
        if self.exact and self.probes != 1:
            given = f"--exact with --probes {self.probes}"
            raise UserError(given, "one of the two", "drop --probes")
