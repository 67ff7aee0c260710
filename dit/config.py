"""What a user can choose: frozen dataclasses, the one source for flags, `--help`, JSON and docs.

The string under a field is its help text. Defaults are the digits example, small enough for a laptop.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tyro.conf import Positional

from dit.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a diffusion model of images, on latents or pixels: by class, by caption, or unconditional."""

    preset: str = "digits"
    """Named configuration that gives the defaults of all other flags: digits, imagenet-256, imagenet-256-flow."""

    # -- data ------------------------------------------------------------------------------------------------
    data: str = "digits"
    """`digits` (1,797 handwritten digits, ships with scikit-learn), a folder with one subfolder of images per
    class, a folder of images without classes, or a folder of latents written by `dit encode`; with --conditioning text
    a folder with a metadata.jsonl of captions."""
    vae: str = "digits"
    """Autoencoder: `digits` (bundled), `identity` (pixels), a hub name such as stabilityai/sd-vae-ft-ema, or a
    local folder in diffusers' layout."""
    image_size: int | tuple[int, int] = 32
    """Side of the images in pixels, or their height and width, such as 32 48."""
    num_classes: int | None = None
    """Number of classes; counted in the data unless given. 0: unconditional, labels are ignored, as in a folder of
    images without subfolders."""
    flip: bool | None = None
    """Random horizontal flips; unless given, on where the data allows it (never for digits)."""
    latent_norm: Literal["vae", "data"] = "vae"
    """Scale latents by the autoencoder's own constants, or to zero mean and unit deviation per channel as
    measured on the data."""

    # -- network ---------------------------------------------------------------------------------------------
    model: str = "DiT-Ti/2"
    """Size and patch: DiT-{Ti,S,B,L,XL}/{1,2,4,8}; or UNet-{S,B}."""
    conditioning: Literal["adaln-zero", "adaln", "cross-attention", "in-context", "text"] = "adaln-zero"
    """How a DiT hears of time and class (2212.09748, section 3.2); text: of a caption, by cross-attention."""
    unet_attention: tuple[int, ...] | None = None
    """With a UNet: sides, in latents, of the levels that have self-attention, such as 16 8; unless given, its size's
    own."""
    text_encoder: str | None = None
    """With --conditioning text: `digits` (bundled), a hub name such as openai/clip-vit-large-patch14, or a local folder
    of a Hugging Face text encoder; unless given, the bundled one for digits."""

    # -- diffusion -------------------------------------------------------------------------------------------
    process: Literal["flow", "linear", "cosine"] = "flow"
    """Noise process: flow matching, or DDPM's 1000 steps with linear or cosine betas."""
    objective: Literal["eps", "x0", "v"] = "v"
    """What the network predicts: the noise, the data, or the velocity."""
    learn_sigma: bool = False
    """Predict the variance too, trained by the variational bound (DDPM processes only)."""
    loss: Literal["simple", "vlb"] = "simple"
    """simple: squared error, with --learn-sigma plus the variational bound for the variance (the hybrid loss of
    2102.09672); vlb: that bound alone, for the mean too, with --learn-sigma."""
    time_sampling: Literal["uniform", "logit-normal", "loss-aware"] = "logit-normal"
    """Distribution of training times: the first two for flow (DDPM is uniform); loss-aware: where the loss is large,
    for DDPM (2102.09672, section 3.3)."""
    time_shift: float = 1.0
    """Shifts flow times towards noise: t -> s t / (1 + (s - 1) t), in training and in sampling."""
    min_snr_gamma: float | None = None
    """Clamp of the min-SNR loss weighting (2303.09556), usually 5; off unless given."""
    label_dropout: float = 0.1
    """Chance that a label is replaced by the null class, for classifier-free guidance."""

    # -- optimisation ----------------------------------------------------------------------------------------
    steps: int = 560
    """Optimizer steps in all."""
    epochs: float | None = None
    """Passes over the data; overrides --steps."""
    global_batch_size: int = 64
    """Images per optimizer step, over all ranks and accumulation steps."""
    grad_accum: int = 1
    """Micro-batches per optimizer step and rank."""
    lr: float = 4e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    beta2: float = 0.99
    """Second-moment decay of AdamW."""
    warmup: int = 50
    """Steps of linear warm-up."""
    cooldown: float = 0.5
    """Last share of the steps over which the learning rate falls linearly to zero; 0 keeps it constant."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 never clips."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, which sampling uses."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; auto takes bf16 where the hardware has it."""
    compile: bool | None = None
    """Compile the network with torch.compile; unless given, on for CUDA and off on CPU."""
    seed: int = 0
    """Seed of initial weights, order of data, times, noise and label drops."""

    # -- the run ---------------------------------------------------------------------------------------------
    out: Path | None = None
    """Run directory; unless given, the next free runs/NNN-DATA-MODEL."""
    init: Path | None = None
    """Start from the EMA of another run (directory, checkpoint or weights file), also with other classes: the label
    embeddings start afresh where their number differs."""
    resume: str | None = None
    """Continue a run: its directory, or `auto` to continue --out where it has a checkpoint and start it where not."""
    sample_every: int = 140
    """Steps between sample grids; 0 = never."""
    ckpt_every: int = 280
    """Steps between checkpoints; 0 = only at the end."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl; 0 = never."""
    keep: int = 2
    """How many checkpoints to keep, newest first, and the best one beside them where --eval-every is on."""
    eval_every: int = 0
    """Steps between scores of the EMA, on samples with the same seeds every time; 0 = never. The checkpoint with the
    lowest Fréchet distance is kept as RUN/best; each new best writes a whole checkpoint."""
    eval_samples: int = 500
    """Samples behind each score of --eval-every."""
    eval_reference: str | None = None
    """What the samples of --eval-every are compared with, as --reference of evaluate.py; the training images unless
    given."""
    eval_extractor: str = "auto"
    """Feature network of --eval-every, one of those that --extractor of evaluate.py takes."""
    eval_weights: str | None = None
    """File of that network's weights, for machines that can not download them."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory, tokens, data and schedule, and stop."""

    def __post_init__(self) -> None:
        positive = ("global_batch_size", "grad_accum", "lr", "steps", "time_shift", "keep")
        not_negative = ("warmup", "clip", "weight_decay", "sample_every", "ckpt_every", "log_every", "eval_every")
        _require_range(self, ("seed",), lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")
        _require_range(self, positive, lambda v: v > 0, "a number above 0")
        _require_sides(self)
        _require_range(self, not_negative, lambda v: v >= 0, "0 or more")
        _require_range(self, ("label_dropout", "ema", "beta2"), lambda v: 0 <= v < 1, "a number in [0, 1)")
        _require_range(self, ("eval_samples",), lambda v: v > 1, "2 or more")
        _require_range(self, ("cooldown",), lambda v: 0 <= v <= 1, "a number in [0, 1]")
        _require_range(self, ("epochs", "min_snr_gamma"), lambda v: v is None or v > 0, "above 0")
        _require_range(self, ("num_classes",), lambda v: v is None or 0 <= v <= 10**7, "from 0 to ten million")
        if self.process == "flow" and self.objective == "eps":
            raise UserError("--process flow with --objective eps", "--objective v or x0 with flow matching",
                            "pure noise tells nothing of the data at t = 1: pass --objective v")
        if self.process == "flow" and self.learn_sigma:
            raise UserError("--process flow with --learn-sigma", "--process linear or cosine with --learn-sigma",
                            "a flow has no variance to learn: drop --learn-sigma")
        _require_text(self)
        _require_task(self)
        if self.unet_attention is not None and not self.model.startswith("UNet-"):
            given = " ".join(map(str, self.unet_attention))
            raise UserError(f"--unet-attention {given} with --model {self.model}", "a UNet with it",
                            "pass --model UNet-S, or drop --unet-attention")
        if self.process == "flow" and self.time_sampling == "loss-aware":
            raise UserError("--process flow with --time-sampling loss-aware", "--process linear or cosine with it",
                            "it counts losses of whole noising steps: pass --time-sampling logit-normal")
        if self.loss == "vlb" and not self.learn_sigma:
            raise UserError(f"--process {self.process} with --loss vlb and without --learn-sigma",
                            "--process linear or cosine and --learn-sigma with --loss vlb",
                            "the bound trains the variance too: add --learn-sigma, or pass --loss simple")
        if self.loss == "vlb" and self.min_snr_gamma is not None:
            raise UserError(f"--loss vlb with --min-snr-gamma {self.min_snr_gamma:g}", "one of the two",
                            "the bound has weights of its own: drop --min-snr-gamma, or pass --loss simple")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Train a classifier of noised latents, to guide a run with (2105.05233): data, autoencoder, process as there."""

    run: Path
    """Run to be guided: its directory, a checkpoint directory, or a file of EMA weights (.safetensors)."""
    data: str | None = None
    """Images or latents with classes, as in train.py; unless given, those that the run was trained on."""
    model: str = "Classifier-Ti/2"
    """Size and patch: Classifier-{Ti,S,B,L,XL}/{1,2,4,8}; a smaller one than the run's will do."""
    steps: int = 560
    """Optimizer steps in all."""
    global_batch_size: int = 64
    """Images per optimizer step, over all ranks."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW."""
    warmup: int = 50
    """Steps of linear warm-up."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; auto takes bf16 where the hardware has it."""
    compile: bool | None = None
    """Compile the network with torch.compile; unless given, on for CUDA and off on CPU."""
    seed: int = 0
    """Seed of initial weights, order of data, times and noise."""
    out: Path | None = None
    """Run directory of the classifier; unless given, classifier/ in the run."""
    resume: str | None = None
    """Continue a classifier: its directory, or `auto` to continue --out where it has a checkpoint."""
    ckpt_every: int = 280
    """Steps between checkpoints; 0 = only at the end."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl; 0 = never."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory, tokens, data and schedule, and stop."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How noise becomes an image."""

    sampler: Literal["auto", "ddpm", "ddim", "euler", "heun", "dpmpp_2m"] = "auto"
    """auto: dpmpp_2m for flow matching, ddpm for the DDPM processes."""
    steps: int | None = None
    """Sampling steps (heun calls the network twice in each); unless given, 25, and 250 for ddpm."""
    cfg_scale: float = 1.0
    """Classifier-free guidance: 1 is none."""
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Guide only at times in this interval: 0 is data, 1 is noise (2404.07724)."""
    cfg_channels: int | None = None
    """Guide only the first channels; 3 is what the original DiT release does; all unless given."""
    eta: float = 0.0
    """DDIM's noise: 0 is deterministic, 1 is ancestral."""
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
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto takes bf16 where the hardware has it. Images of fp32 and bf16 differ slightly."""

    def __post_init__(self) -> None:
        _require_range(self, ("steps",), lambda v: v is None or v > 0, "a number above 0")
        _require_range(self, ("batch_size",), lambda v: v > 0, "a number above 0")
        _require_range(self, ("cfg_scale", "eta", "classifier_scale"), lambda v: v >= 0, "0 or more")
        _require_sides(self)
        _require_range(self, ("seed",), lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")
        _require_range(self, ("cfg_interval",), lambda v: 0 <= v[0] <= v[1] <= 1, "two times 0 <= low <= high <= 1")
        _require_range(self, ("cfg_channels",), lambda v: v is None or v > 0, "a number above 0")
        if self.guide and self.cfg_scale == 1:
            raise UserError(f"--guide {self.guide} with --cfg-scale 1", "another scale with --guide",
                            "at scale 1 nothing is extrapolated: pass --cfg-scale 2, or drop --guide")
        if self.classifier is None and self.classifier_scale != 1:
            raise UserError(f"--classifier-scale {self.classifier_scale:g} without --classifier",
                            "a classifier with --classifier-scale",
                            "pass --classifier RUN, a run of `dit train-classifier`, or drop --classifier-scale")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplerConfig):
    """Sample images from a trained run: a labelled grid, or many images in a folder or an .npz file."""

    run: Path
    """Run directory, checkpoint directory, or a file of EMA weights (.safetensors)."""
    classes: str | None = None
    """Class ids such as 0,1,2, taken in turn; unless given, all (in a grid at most 16)."""
    num_samples: int | None = None
    """Number of images for --out; unless given, a grid with some images of each class."""
    prompt: tuple[str, ...] = ()
    """Captions to draw, for a run with --conditioning text, such as "a seven" "a one"."""
    negative_prompt: str = ""
    """What --cfg-scale leads away from, for a run with --conditioning text."""
    per_class: int = 8
    """Images of each class, or of each prompt, in the grid."""
    out: Path | None = None
    """Grid: a .png file (default: in the run's samples/). With --num-samples: the folder to fill."""
    format: Literal["png", "npz"] = "png"
    """With --num-samples: one .png an image, or one samples.npz."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt and self.classes is not None:
            raise UserError(f"--prompt {self.prompt[0]!r} with --classes {self.classes}", "one of the two", "drop one")
        if self.negative_prompt and (self.cfg_scale == 1 or self.guide):
            other = f"--guide {self.guide}" if self.guide else f"--cfg-scale {self.cfg_scale:g}"
            raise UserError(f"--negative-prompt {self.negative_prompt!r} with {other}",
                            "--cfg-scale above 1 and no --guide, for guidance to lead away from the prompt",
                            "pass --cfg-scale 2, drop --guide, or drop --negative-prompt")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """What samples are compared with, and how."""

    reference: str | None = None
    """`digits`, a folder of images, or an .npz file of images or statistics; the run's own data unless given."""
    crop: bool | None = None
    """Crop the reference's images to the samples' size as ADM does; unless given, only the run's own data."""
    extractor: tuple[str, ...] = ("auto",)
    """Feature networks, one or several: inception, dinov2, digits-cnn, MODULE:CLASS, or a name registered with
    torch-fidelity; auto: digits-cnn for digits, else inception."""
    weights: tuple[str, ...] = ()
    """Local weights of the feature network, where they can not be downloaded: FILE, or NAME=FILE for several."""
    bootstrap: int = 50
    """How often the samples are drawn again to tell how sure a Fréchet distance is; 0: not at all."""
    cache: bool = True
    """Keep features of references in ~/.cache/dit (or $DIT_CACHE), named by content, for the next time."""

    def __post_init__(self) -> None:
        _require_range(self, ("extractor",), lambda v: len(v) > 0, "one name or more")
        _require_range(self, ("bootstrap",), lambda v: v == 0 or v >= 10, "0, or 10 or more")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(SamplerConfig, ScoringConfig):
    """Score samples against a reference and write report.json, report.md and report.html."""

    run: Path | None = None
    """Run to sample from and score."""
    samples: Path | None = None
    """Images to score instead: a folder or an .npz file."""
    num_samples: int | None = None
    """Images to sample from the run; unless given, as many as the reference has, at most 50,000."""
    train_data: str | None = None
    """Images that samples may have been copied from: `digits` or a folder, cropped to the samples' size; unless given,
    the reference, if it is the run's own data."""
    out: Path | None = None
    """Folder of the report; unless given, evaluation/ in the run or SAMPLES-evaluation beside the samples."""

    def __post_init__(self) -> None:
        SamplerConfig.__post_init__(self)
        ScoringConfig.__post_init__(self)
        _require_range(self, ("num_samples",), lambda v: v is None or v > 1, "2 or more")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ScoringConfig):
    """Score a grid of sampling settings on one run, with the same seeds in each; continues where it was interrupted."""

    run: Path
    """Run directory, checkpoint directory, or a file of EMA weights (.safetensors)."""
    cfg_scale: str = "1:4:0.5"
    """Scales of classifier-free guidance: a list such as 1,1.5,2 or a range START:STOP:STEP with its end."""
    interval: str = "0-1"
    """Intervals of time to guide in, LOW-HIGH, such as 0-1,0.2-0.8: 0 is data, 1 is noise (2404.07724)."""
    steps: str | None = None
    """Sampling steps, a list or a range; unless given, the sampler's own number."""
    sampler: str = "auto"
    """Samplers, a list such as ddim,dpmpp_2m; auto as in sample.py."""
    cfg_channels: int | None = None
    """Guide only the first channels; 3 is what the original DiT release does; all unless given."""
    guide: Path | None = None
    """Autoguidance by a weaker run, as in sample.py, at every --cfg-scale but 1."""
    classifier: Path | None = None
    """Classifier guidance by a run of `dit train-classifier`, as in sample.py."""
    classifier_scale: str | None = None
    """With --classifier: weights of its gradient, a list or a range such as 0:4:1; 0 is none, 1 unless given."""
    eta: float = 0.0
    """DDIM's noise: 0 is deterministic, 1 is ancestral."""
    variance: Literal["auto", "small", "large", "learned"] = "auto"
    """Variance of ddpm steps; auto: learned where the network has it, else small."""
    num_samples: int = 1000
    """Images for each setting."""
    image_size: int | tuple[int, int] | None = None
    """Side, or height and width, of the images where it is not that of training, as in sample.py."""
    seed: int = 0
    """Image i is made from (seed, i) in every setting, so that settings differ by themselves and not by luck."""
    batch_size: int = 64
    """Images per network call and rank."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network."""
    out: Path | None = None
    """Folder of the results; unless given, sweep/ in the run."""
    keep_samples: bool = False
    """Keep the images of every setting, not only a grid of the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier_scale is not None and self.classifier is None:
            raise UserError(f"--classifier-scale {self.classifier_scale} without --classifier",
                            "a classifier with --classifier-scale",
                            "pass --classifier RUN, a run of `dit train-classifier`, or drop --classifier-scale")
        _require_sides(self)
        _require_range(self, ("batch_size",), lambda v: v > 0, "a number above 0")
        _require_range(self, ("eta",), lambda v: v >= 0, "0 or more")
        _require_range(self, ("cfg_channels",), lambda v: v is None or v > 0, "a number above 0")
        _require_range(self, ("num_samples",), lambda v: v > 1, "2 or more")
        _require_range(self, ("seed",), lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Write the statistics of a data set's features, to be a reference for ever after."""

    data: str
    """`digits`, a folder of images (flat or one subfolder per class), or an .npz file of images."""
    out: Path
    """The .npz file to write."""
    image_size: int | tuple[int, int] | None = None
    """Crop images to this side, or height and width, as ADM does; unless given, they are taken as they are
    (digits: 32)."""
    extractor: tuple[str, ...] = ("auto",)
    """Feature networks, as in evaluate.py."""
    weights: tuple[str, ...] = ()
    """Local weights of the feature network, as in evaluate.py."""
    batch_size: int = 64
    """Images per network call and rank."""
    cache: bool = True
    """Keep features in ~/.cache/dit (or $DIT_CACHE), named by content."""

    def __post_init__(self) -> None:
        _require_range(self, ("batch_size",), lambda v: v > 0, "a number above 0")
        _require_sides(self)
        _require_range(self, ("extractor",), lambda v: len(v) > 0, "one name or more")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Tell whether the scores of two reports may be compared; exit code 1 if not, or if it can't be told."""

    a: Positional[Path]
    """report.json of one evaluation, or its folder."""
    b: Positional[Path]
    """report.json of the other."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Encode an image folder to latents once, so that training need not; continues where it was interrupted."""

    data: str
    """`digits`, or a folder of images, flat or with one subfolder per class."""
    out: Path
    """Folder for the latent shards."""
    vae: str = "digits"
    """Autoencoder, as in train.py."""
    image_size: int | tuple[int, int] = 256
    """Side of the images in pixels, or their height and width."""
    captions: bool = False
    """Keep captions, for --conditioning text: those of digits, or of the folder's metadata.jsonl."""
    flip: bool | None = None
    """Store the mirrored image too; unless given, on where the data allows it (never for digits)."""
    batch_size: int = 64
    """Images per call of the encoder and rank."""
    shard_size: int = 10_000
    """Images in one shard file."""

    def __post_init__(self) -> None:
        _require_range(self, ("batch_size", "shard_size"), lambda v: v > 0, "a number above 0")
        _require_sides(self)


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
        _require_range(self, ("steps", "batch_size", "lr", "latent_channels"), lambda v: v > 0, "a number above 0")
        _require_range(self, ("gan_weight", "shift"), lambda v: v >= 0, "0 or more")
        _require_range(self, ("kl_weight", "commitment", "lpips_weight", "gan_start"), lambda v: v is None or v >= 0,
                       "0 or more")
        _require_range(self, ("codebook_size",), lambda v: v is None or v > 1, "2 or more")
        _require_range(self, ("codebook_dim",), lambda v: v is None or v > 0, "a number above 0")
        _require_range(self, ("held_out",), lambda v: 0 < v < 1, "a number in (0, 1)")
        _require_range(self, ("seed",), lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")
        _require_range(self, ("channels",), lambda v: v and all(width > 0 and width % 8 == 0 for width in v),
                       "multiples of 8, such as 16 32 32")
        _require_sides(self)
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
        return dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})


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
                raise UserError(given, f"{flag} with --kind {kind}", f"drop {flag}, or pass --kind {kind}")
    for flag, value, other, on in (("--lpips-weight", config.lpips_weight, "--lpips FILE", config.lpips is not None),
                                   ("--gan-start", config.gan_start, "--gan-weight", config.gan_weight > 0)):
        if value is not None and not on:
            raise UserError(f"{flag} {value} without {other}", f"{flag} with {other}", f"pass {other}, or drop {flag}")
    if config.gan_start is not None and config.gan_start >= config.steps:
        raise UserError(f"--gan-start {config.gan_start} with --steps {config.steps}", "a step before the last",
                        "pass a smaller --gan-start, or more --steps")


@dataclass(frozen=True, kw_only=True)
class NllConfig:
    """Measure how likely images are under a pixel model (--vae identity), in bits per dimension."""

    run: Path
    """Run directory, checkpoint directory, or a file of EMA weights (.safetensors)."""
    data: str | None = None
    """Images to measure: `digits`, a folder, or latents of `dit encode --vae identity`; the run's own data unless
    given."""
    num_images: int = 100
    """How many of them, evenly spread."""
    method: Literal["auto", "vlb", "ode"] = "auto"
    """vlb: the variational bound of a DDPM (2006.11239); ode: the density of the probability-flow ODE (2011.13456);
    auto: vlb for DDPM processes, ode for flow matching."""
    steps: int | None = None
    """Steps of the chain, or of the ODE, which calls the network twice in each; unless given, all 1000, or 50."""
    variance: Literal["auto", "small", "large", "learned"] = "auto"
    """Variance of the model's steps, for vlb; auto: learned where the network has it, else large."""
    probes: int = 1
    """Random vectors to estimate an image's divergence with, for ode (1810.01367)."""
    exact: bool = False
    """Compute the divergence instead, for ode: as many gradients a step as the image has values."""
    seed: int = 0
    """Noise of image i is made from (seed, i) alone, whatever the batch size or the number of ranks."""
    batch_size: int = 64
    """Images per network call and rank."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the network; bf16 is quicker and off by a little."""
    out: Path | None = None
    """The JSON file to write; unless given, nll.json in the run."""

    def __post_init__(self) -> None:
        _require_range(self, ("num_images", "probes", "batch_size"), lambda v: v > 0, "a number above 0")
        _require_range(self, ("steps",), lambda v: v is None or v > 0, "a number above 0")
        _require_range(self, ("seed",), lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")
        if self.exact and self.probes != 1:
            raise UserError(f"--exact with --probes {self.probes}", "one of the two", "drop --probes")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Turn a .pt file of the original DiT release into weights that sample.py and evaluate.py take."""

    file: Positional[Path]
    """The .pt file; no code in it is run."""
    out: Positional[Path]
    """The .safetensors file to write."""
    vae: str = "stabilityai/sd-vae-ft-ema"
    """Autoencoder of the network's latents."""


@dataclass(frozen=True, kw_only=True)
class ShowConfig(SamplerConfig):
    """Draw how a run noises its data or makes images of noise, with what it predicts and attends to on the way."""

    direction: Positional[Literal["forward", "backward"]]
    """forward: images of the run's own data, noised, and the prediction of each in one step; backward: sampling."""
    run: Positional[Path]
    """Run directory, checkpoint directory, or a file of EMA weights (.safetensors)."""
    classes: str | None = None
    """Class ids such as 0,1,2, taken in turn; unless given, some of all."""
    prompt: tuple[str, ...] = ()
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
        _require_range(self, ("num_images",), lambda v: v > 0, "a number above 0")
        _require_range(self, ("token",), lambda v: v is None or min(v) >= 0, "a row and a column, 0 or more")
        other = "forward" if self.direction == "forward" else self.classes and f"--classes {self.classes}"
        if self.prompt and other:
            raise UserError(f"--prompt {self.prompt[0]!r} with {other}", "one of the two", "drop --prompt")


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Tell what a run, a checkpoint, a file of weights or a first stage is, and whether it is intact."""

    path: Positional[Path]
    """Run directory, checkpoint directory, .safetensors file, a .pt file of the original DiT release, or a folder of
    `dit train-vae`."""


Config = TypeVar("Config")


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(cls: type[Config], values: dict[str, Any]) -> Config:
    """The inverse of `to_json`.

    Raises:
        UserError: a key that `cls` does not have.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(f"unknown setting {key!r} in a saved {cls.__name__}", "a setting of this version",
                            nearest(key, fields))
    return cls(**{k: _from_plain(fields[k].type, v) for k, v in values.items()})


def _from_plain(kind: Any, value: Any) -> Any:
    if value is not None and "Path" in str(kind):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _require_task(config: TrainConfig) -> None:
    """Refuse what a classifier does not do: it draws no images, and predicts neither noise nor variance."""
    gamma = config.min_snr_gamma
    drawing = {
        f"--label-dropout {config.label_dropout:g}": config.label_dropout,
        f"--eval-every {config.eval_every}": config.eval_every,
        "--learn-sigma": config.learn_sigma,
        f"--loss {config.loss}": config.loss != "simple",
        f"--objective {config.objective}": config.objective != "v",
        f"--min-snr-gamma {gamma}": gamma is not None,
    }
    given = [flag for flag, on in drawing.items() if on]
    if given and config.model.startswith("Classifier-"):
        raise UserError(f"--model {config.model} with {given[0]}", "a network that draws images with it",
                        "train a classifier with `dit train-classifier --run RUN`")


def _require_text(config: TrainConfig) -> None:
    given = f"--conditioning {config.conditioning}"
    if config.conditioning != "text":
        if config.text_encoder is not None:
            raise UserError(f"{given} with --text-encoder {config.text_encoder}", "--conditioning text with it",
                            "pass --conditioning text, or drop --text-encoder")
        return
    if config.text_encoder is None and config.data != "digits":
        raise UserError(f"{given} without --text-encoder for --data {config.data}",
                        "a hub name or a folder of a text encoder", "pass --text-encoder")
    if config.num_classes is not None:
        raise UserError(f"{given} with --num-classes {config.num_classes}", "captions or classes, not both",
                        "drop --num-classes: the captions are counted in the data")
    if not config.model.startswith("DiT-"):
        raise UserError(f"{given} with --model {config.model}", "a DiT, which alone hears of text",
                        "pass --model DiT-S/2, or drop --conditioning text")


def _require_sides(config: Any) -> None:
    size = config.image_size
    if size is not None and min(size if isinstance(size, tuple) else (size,)) <= 0:
        given = " ".join(map(str, size if isinstance(size, tuple) else (size,)))
        raise UserError(f"--image-size {given}", "numbers above 0", "change --image-size")


def _require_range(config: Any, names: tuple[str, ...], holds: Any, expected: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not holds(value) or value in (math.inf, -math.inf):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {value}", expected, f"change {flag}")
