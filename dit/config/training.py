"""Flags of training a diffusion model, or a classifier to guide one."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dit.config.validation import (
    NOT_NEGATIVE,
    NOT_NEGATIVE_OR_NONE,
    POSITIVE,
    POSITIVE_OR_NONE,
    SEED,
    TWO_OR_MORE,
    Range,
    flag_of,
    require_lengths,
    require_none,
    require_none_of,
    require_use,
    require_values,
)
from dit.errors import UserError

OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon and AdamW"}
"""What a reader calls the choices of --optimizer."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a diffusion model of images, on latents or pixels: by class, caption, or neither."""

    preset: str = "digits"
    """Named configuration that gives the defaults of all other flags: digits, photos, modern,
    imagenet-256, imagenet-256-flow, imagenet-256-modern. Unless given, digits, and photos with any
    other --data."""

    # -- data ------------------------------------------------------------------------------------
    data: str = "digits"
    """Training images: `digits` (1,797 handwritten ones of scikit-learn); a folder, with one
    subfolder per class or without classes; latents of `dit encode`; tar shards or a data set of
    Hugging Face, as `dit encode` takes them; your own MODULE:CLASS. With --conditioning text: a
    folder with a metadata.jsonl of captions, or one of the last four."""
    image_column: str | None = None
    """With tar shards or a data set of Hugging Face: the image, as in `dit encode`."""
    label_column: str | None = None
    """Where the class or caption is, as in `dit encode`: in a data set, tars or metadata.jsonl."""
    skip_damaged: bool = False
    """Leave out images that cannot be read; with latents, shards whose checksum is wrong, for which
    all are read first."""
    vae: str = "digits"
    """Autoencoder: `digits` (bundled), `tiny` (bundled, for small colour images), `identity`
    (pixels), a hub name such as stabilityai/sd-vae-ft-ema, or a local folder in diffusers'
    layout. Latents say their own. With photos: tiny, or on a GPU Stable Diffusion's for large
    images."""
    image_size: int | tuple[int, int] = 32
    """Side of the images in pixels, or their height and width, such as 32 48. Latents say their
    own. With photos: on a CPU 64, or 32 for smaller images; on a GPU up to 256."""
    num_classes: int | None = None
    """Number of classes; counted in the data unless given. 0: unconditional, labels are ignored."""
    flip: bool | None = None
    """Random horizontal flips; unless given, on where the data allows it (never for digits)."""
    latent_norm: Literal["vae", "data"] = "vae"
    """Scale latents by the autoencoder's own constants, or to zero mean and unit deviation per
    channel, as measured on the data."""

    # -- network ---------------------------------------------------------------------------------
    model: str = "DiT-Ti/2"
    """DiT-{Mi,Ti,S,B,L,XL,1B,3B,7B}/{1,2,4,8}, by size and patch; UNet-{S,B}; or MODULE:CLASS."""
    conditioning: Literal[
        "adaln-zero", "adaln", "adaln-single", "cross-attention", "in-context", "tokens", "text"
    ] = "adaln-zero"
    """How time and class enter a DiT (2212.09748, section 3.2). adaln-single: one projection for
    all blocks and a small table in each, a third fewer parameters (2310.00426); tokens: as learned
    tokens beside the patches, without adaLN, a third fewer too (2512.02012); text: captions enter
    by cross-attention."""
    block: str = "plain"
    """Layers of a DiT's blocks. plain: those of 2212.09748; modern: RMSNorm, rotary positions,
    normed queries and keys, SwiGLU and heads of 64. Each can be switched: plain+rope,
    modern-qknorm+nobias; the switches are rmsnorm, rope, qknorm, swiglu, heads64, nobias."""
    inner_head: bool = False
    """A second last layer after an early block of a DiT (8 of 28), trained along with half the
    weight; `sample.py --guide internal` guides by it (2512.24176)."""
    unet_attention: tuple[int, ...] | None = None
    """With a UNet: levels with self-attention, by their side in latents, such as 16 8; unless
    given, those of its size."""
    text_encoder: str | None = None
    """With --conditioning text: `digits` (bundled), a hub name such as
    openai/clip-vit-large-patch14, or a local folder of a Hugging Face text encoder; unless given,
    the bundled one for digits."""

    # -- diffusion -------------------------------------------------------------------------------
    process: Literal["flow", "linear", "cosine"] = "flow"
    """Noise process: flow matching, or DDPM's 1000 steps with linear or cosine betas."""
    objective: Literal["eps", "x0", "v", "meanflow"] = "v"
    """What the network predicts: the noise, the data, or the velocity. meanflow: the velocity of a
    flow averaged over a step of any length, to sample in one or two steps (2505.13447)."""
    meanflow_form: Literal["improved", "classic"] = "improved"
    """Loss of --objective meanflow. improved: squared error of the velocity, the derivative taken
    along the network's own one (2512.02012); classic: along that of each image, and with weights
    that bound each image's loss (2505.13447)."""
    meanflow_instant: float = 0.5
    """With --objective meanflow: share of images with steps of length 0, usually 0.5, or 0.75 with
    the classic form. They train as flow matching and cost less."""
    meanflow_scale: float = 1.0
    """With --objective meanflow: scale of classifier-free guidance that the network learns, so that
    sampling needs none, with one call a step; 1: none."""
    meanflow_mix: float | None = None
    """With --meanflow-scale S: share of the network's own velocity in the guided one (kappa of
    2505.13447); unless given, 1 - 1 / S (2512.02012)."""
    learn_sigma: bool = False
    """Predict the variance too, trained by the variational bound (DDPM processes only)."""
    loss: Literal["simple", "velocity", "vlb"] = "simple"
    """simple: squared error; with --learn-sigma also the variational bound for the variance (the
    hybrid loss of 2102.09672). velocity: the squared error of the velocity of a flow, whatever the
    network predicts: with --objective x0 for pixels and wide latents (2511.13720). vlb: the bound
    alone, for the mean too, with --learn-sigma."""
    cosine: float = 0.0
    """Weight of 1 - cos between predicted and true velocity, with flow (2410.10356), usually 1."""
    time_sampling: Literal["uniform", "logit-normal", "loss-aware"] = "logit-normal"
    """Distribution of training times. uniform and logit-normal: for flow (DDPM is uniform);
    loss-aware: where the loss is large, for DDPM (2102.09672, section 3.3)."""
    time_shift: float | Literal["auto"] = 1.0
    """Shift flow times towards noise: t -> s t / (1 + (s - 1) t), in training and in sampling.
    auto: s = sqrt(m / 4096) for latents of m numbers (2403.03206, equation 23; 2510.11690)."""
    min_snr_gamma: float | None = None
    """Clamp of the min-SNR loss weighting (2303.09556), usually 5; off unless given."""
    label_dropout: float = 0.1
    """Probability that the null class replaces a label, for classifier-free guidance."""
    route: float = 0.0
    """Share of an image's tokens that skip the middle blocks in training, such as 0.5, drawn again
    in every step (TREAD, 2501.04765). It saves their work; sampling uses all tokens."""

    align: str | None = None
    """Align the tokens of an early block of a DiT (8 of 28) with features of the same image. self:
    those of a later block of the EMA, at less noise (SRA, 2505.02831). Or a vision transformer of
    timm that sees the decoded image (iREPA, 2512.10794): a local folder with config.json and
    model.safetensors, or a hub name such as timm/vit_base_patch14_dinov2.lvd142m. A projector is
    trained for it and dropped in the end."""
    align_weight: float = 0.5
    """Weight of the loss of --align, 1 - cos (2410.06940)."""
    align_until: float = 0.4
    """Share of the steps after which --align ends: it helps early and hinders late (2505.16792).
    It is of the steps that the run starts with, also if it is resumed with more."""

    # -- optimisation ----------------------------------------------------------------------------
    steps: int = 560
    """Optimizer steps in all."""
    epochs: float | None = None
    """Passes over the data; overrides --steps."""
    minutes: float | None = None
    """Length of the run by the speed of this machine, which is measured before the first step;
    overrides --steps. With photos, unless a length is given: 15, or 30 on a GPU."""
    global_batch_size: int = 64
    """Images per optimizer step, over all ranks and accumulation steps."""
    grad_accum: int = 1
    """Micro-batches per optimizer step and rank."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: for all weights. muon: steps of the matrices in a DiT's blocks are their momentum,
    made orthogonal (2502.16982), at the learning rate of AdamW, which takes all other weights."""
    lr: float = 4e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta2: float = 0.99
    """Second-moment decay of AdamW."""
    warmup: int | None = None
    """Steps of linear warm-up; unless given, a hundredth of the steps, from 50 to 1000 of them, but
    at most a tenth, and none in the cool-down."""
    cooldown: float = 0.5
    """Last share of the steps, in which the learning rate falls linearly to zero; 0: constant."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    spike: float = 10.0
    """Skip a step whose loss or gradient norm is this many standard deviations above its running
    mean. A step that is not finite is always skipped; 0: only those."""
    on_divergence: Literal["stop", "skip", "rollback"] = "rollback"
    """stop: end the run at the first bad step. skip: end it after --max-skips skipped steps in a
    row. rollback: load the last checkpoint then, and continue with other data."""
    max_skips: int = 5
    """Largest number of skipped steps in a row."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, which sampling uses."""
    ema_lengths: tuple[float, ...] = ()
    """Further averages to track: lengths relative to the steps done (sigma_rel of 2312.02696), such
    as 0.05 0.1. `dit ema` makes any length from their snapshots. Each takes the memory of the
    weights once more."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Arithmetic of the forward and backward pass. auto: bf16 where the hardware has it. fp8: the
    linear layers of a DiT's blocks multiply in float8, all else as bf16; it needs compute
    capability 8.9, saves memory and may be slower (DiT-XL is). Weights stay float32; samples are
    drawn in bf16."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """What each rank holds. ddp: all weights; fsdp: a share of weights, EMA and optimizer; auto:
    ddp if the estimate of --dry-run fits into memory."""
    compile: bool | None = None
    """Compile the network with torch.compile; unless given, on for CUDA and off for CPU, whose
    compiled code is kept in ~/.cache/dit (or $DIT_CACHE) for later runs."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing: what the backward pass computes again instead of storing it.
    selective: all but matrix products; full: everything, for the least memory and a third more
    work. The gradients are the same."""
    seed: int = 0
    """Seed of initial weights, order of data, times, noise and label dropout."""

    # -- run -------------------------------------------------------------------------------------
    out: Path | None = None
    """Run directory; unless given, the next free runs/NNN-DATA-MODEL."""
    init: Path | None = None
    """Start from the EMA of another run (directory, checkpoint or weights file). The label
    embeddings are initialised again if the number of classes differs."""
    resume: str | None = None
    """Continue a run: its directory, or `auto` to continue --out if it has a checkpoint."""
    sample_every: int | None = 140
    """Steps between sample grids; 0: never. With photos: a tenth of the steps, or as many as a
    tenth of --minutes is enough for."""
    sample_first: int | None = None
    """Step of one more sample grid, before those of --sample-every. With --minutes a minute and a
    half after the first step, where those come later."""
    ckpt_every: int | None = 280
    """Steps between checkpoints; 0: only at the end. With photos: a quarter of the steps,
    5,000 at most."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl; 0: never."""
    ema_every: int | None = None
    """Steps between snapshots of --ema-lengths, which are all kept; unless given, a 32nd of the
    steps."""
    keep: int = 2
    """Number of newest checkpoints to keep; with --eval-every also the best one."""
    keep_every: int = 0
    """Also keep all checkpoints at multiples of this many steps; 0: none."""
    timeout: float = 30.0
    """Minutes without a step after which a run that hangs is ended and the rank named; 0: never."""
    eval_every: int = 0
    """Steps between scores of the EMA, on samples with the same seeds every time; 0: never. The
    checkpoint with the lowest Fréchet distance is kept as RUN/best; each new best writes a full
    checkpoint."""
    eval_samples: int = 500
    """Samples for each score of --eval-every."""
    eval_reference: str | None = None
    """What to compare the samples of --eval-every with, as --reference of evaluate.py; unless
    given, the training images."""
    eval_extractor: str = "auto"
    """Feature network of --eval-every, as --extractor of evaluate.py."""
    eval_weights: str | None = None
    """Weights file of that network, for machines that cannot download it."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases, which must be installed; a resumed run
    continues there."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory, tokens, data and schedule, and stop."""
    gpus: tuple[int, ...] = ()
    """With --dry-run: numbers of GPUs, such as 8 64 256, for which to print memory, communication
    and time too."""
    gpu: Literal["a100", "h100", "h200", "b200"] = "h100"
    """With --gpus: their kind; its data sheet (of the SXM module) gives peak, memory and
    bandwidths."""

    def __post_init__(self) -> None:
        require_values(self, RANGES)
        require_lengths("--ema-lengths", self.ema_lengths)
        _require_generator(self)
        _require_meanflow(self)
        _require_process(self)
        _require_network(self)
        _require_align(self)
        _require_labels(self)
        _require_text(self)

    @property
    def reads_parts(self) -> bool:
        """Whether training reads what an early block of the network knows."""
        return self.inner_head or self.align is not None


RANGES: dict[tuple[str, ...], Range] = {
    ("seed",): SEED,
    ("global_batch_size", "grad_accum", "steps", "keep", "max_skips"): POSITIVE,
    ("lr",): POSITIVE,
    # t -> s t / (1 + (s - 1) t) divides by 0 beyond
    ("time_shift",): (
        lambda v: v == "auto" or 1e-6 <= v <= 1e6,
        "a number from 0.000001 to 1,000,000, or auto",
    ),
    ("warmup",): NOT_NEGATIVE_OR_NONE,
    ("cosine", "clip", "weight_decay", "timeout", "spike"): NOT_NEGATIVE,
    ("log_every", "eval_every", "keep_every"): NOT_NEGATIVE,
    ("sample_every", "ckpt_every"): NOT_NEGATIVE_OR_NONE,
    ("label_dropout", "ema", "beta2", "route"): (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    ("align_weight",): POSITIVE,
    ("align_until",): (lambda v: 0 < v <= 1, "a number above 0, at most 1"),
    ("cooldown", "meanflow_instant"): (lambda v: 0 <= v <= 1, "a number in [0, 1]"),
    ("meanflow_scale",): (lambda v: v >= 1, "1 or more"),
    ("meanflow_mix",): (lambda v: v is None or 0 <= v < 1, "a number in [0, 1)"),
    ("eval_samples",): TWO_OR_MORE,
    ("ema_every", "epochs", "minutes", "sample_first", "min_snr_gamma"): POSITIVE_OR_NONE,
    ("gpus",): (lambda v: all(count > 0 for count in v), "numbers above 0"),
    ("num_classes",): (lambda v: v is None or 0 <= v <= 10**7, "from 0 to ten million"),
}
"""Ranges of the flags of TrainConfig."""


def _require_process(config: TrainConfig) -> None:
    """Refuse what flow matching, or the variational bound, cannot do."""
    flow, vlb = config.process == "flow", config.loss == "vlb"
    require_none_of(
        [
            # v = d_alpha x0 + d_sigma eps: at t = 1 of a flow, x_t = eps has no information on x0
            (
                flow and config.objective == "eps",
                "--process flow with --objective eps",
                "--objective v or x0 with flow matching",
                "a noise prediction has no information on the data at t = 1: pass --objective v",
            ),
            (
                flow and config.learn_sigma,
                "--process flow with --learn-sigma",
                "--process linear or cosine with --learn-sigma",
                "a flow has no variance to learn: drop --learn-sigma",
            ),
            (
                flow and config.time_sampling == "loss-aware",
                "--process flow with --time-sampling loss-aware",
                "--process linear or cosine with it",
                "it has a loss for each of 1000 steps: pass --time-sampling logit-normal",
            ),
            (
                config.loss == "velocity" and not flow,
                f"--loss velocity with --process {config.process}",
                "--process flow with it",
                "a flow's velocity is meant: pass --loss simple",
            ),
            (
                config.loss == "velocity" and config.min_snr_gamma is not None,
                f"--loss velocity with {flag_of(config, 'min_snr_gamma')}",
                "one of the two",
                "both are weights of the loss: drop --min-snr-gamma, or pass --loss simple",
            ),
            (
                config.cosine > 0 and not flow,
                f"{flag_of(config, 'cosine')} with --process {config.process}",
                "--process flow with it",
                "a flow's velocity is meant: drop --cosine",
            ),
            (
                vlb and not config.learn_sigma,
                f"--process {config.process} with --loss vlb and without --learn-sigma",
                "--process linear or cosine and --learn-sigma with --loss vlb",
                "the bound trains the variance too: add --learn-sigma, or pass --loss simple",
            ),
            (
                vlb and config.min_snr_gamma is not None,
                f"--loss vlb with {flag_of(config, 'min_snr_gamma')}",
                "one of the two",
                "the bound has its own weights: drop --min-snr-gamma, or pass --loss simple",
            ),
        ]
    )


def _require_meanflow(config: TrainConfig) -> None:
    """Refuse what MeanFlow cannot be combined with, and its flags without it."""
    if config.objective != "meanflow":
        names = ("meanflow_form", "meanflow_instant", "meanflow_scale", "meanflow_mix")
        given = f"with --objective {config.objective}"
        require_use(config, names, False, given, "--objective meanflow")
        return

    guided = config.meanflow_scale != 1
    require_use(config, ("meanflow_mix",), guided, "without --meanflow-scale", "a scale")
    own_loss = "with --objective meanflow, which has a loss of its own", "another objective"
    require_use(config, ("loss", "min_snr_gamma", "route", "inner_head", "align"), False, *own_loss)
    unguided = config.num_classes == 0 or config.label_dropout == 0
    reason = "label_dropout" if config.label_dropout == 0 else "num_classes"
    require_none_of(
        [
            (
                config.process != "flow",
                f"--objective meanflow with --process {config.process}",
                "--process flow with it",
                "it averages the velocity of a flow: pass --process flow",
            ),
            (
                not config.model.startswith("DiT-"),
                f"--objective meanflow with --model {config.model}",
                "a DiT, which takes the length of a step",
                "pass --model DiT-S/2, or --objective v",
            ),
            (
                config.learn_sigma,
                "--objective meanflow with --learn-sigma",
                "the loss of MeanFlow alone",
                "a flow has no variance to learn: drop --learn-sigma",
            ),
            # a preset may have set it
            (
                config.cosine > 0,
                f"--objective meanflow with {flag_of(config, 'cosine')}",
                "the loss of MeanFlow alone",
                "pass --cosine 0",
            ),
            # float8 products have no forward-mode derivative
            (
                config.precision == "fp8",
                "--objective meanflow with --precision fp8",
                "--precision bf16 or fp32 with it",
                "pass --precision bf16",
            ),
            (
                guided and unguided,
                f"{flag_of(config, 'meanflow_scale')} with {flag_of(config, reason)}",
                "classes, and a null class that label dropout trains",
                "drop --meanflow-scale",
            ),
        ]
    )


def _require_network(config: TrainConfig) -> None:
    """Refuse flags of another network, and snapshots of no average."""
    model = f"with --model {config.model}"
    transformer = config.model.startswith(("DiT-", "Classifier-"))
    require_none_of(
        [
            (
                config.unet_attention is not None and not config.model.startswith("UNet-"),
                f"{flag_of(config, 'unet_attention')} {model}",
                "a UNet with it",
                "pass --model UNet-S, or drop --unet-attention",
            ),
            (
                config.route > 0 and not config.model.startswith("DiT-"),
                f"{flag_of(config, 'route')} {model}",
                "a DiT with it",
                "drop --route, or pass --model DiT-S/2",
            ),
            (
                config.align is not None and not config.model.startswith("DiT-"),
                f"--align {config.align} {model}",
                "a DiT with it",
                "its tokens are aligned: drop --align, or pass --model DiT-S/2",
            ),
            (
                config.inner_head and not config.model.startswith("DiT-"),
                f"--inner-head {model}",
                "a DiT with it",
                "drop --inner-head, or pass --model DiT-S/2",
            ),
            (
                config.learn_sigma and ":" in config.model,
                f"--learn-sigma {model}",
                "a DiT or a UNet with it",
                "it returns the prediction alone: drop --learn-sigma",
            ),
            (
                config.optimizer == "muon" and not transformer,
                f"--optimizer muon {model}",
                "a DiT with it",
                "its blocks are the matrices of Muon: pass --optimizer adamw, or --model DiT-S/2",
            ),
            # only a DiT's blocks have float8 layers
            (
                config.precision == "fp8" and not config.model.startswith("DiT-"),
                f"--precision fp8 {model}",
                "a DiT with it",
                "pass --precision bf16, or --model DiT-S/2",
            ),
            (
                config.ema_every and not config.ema_lengths,
                f"{flag_of(config, 'ema_every')} without --ema-lengths",
                "lengths to store",
                "pass --ema-lengths 0.05 0.1, or drop --ema-every",
            ),
            (
                config.gpus and not config.dry_run,
                f"{flag_of(config, 'gpus')} without --dry-run",
                "--dry-run with it",
                "add --dry-run, or drop --gpus",
            ),
        ]
    )


def _require_align(config: TrainConfig) -> None:
    aligned = config.align is not None
    unread = "without --align", "--align", "pass --align self"
    require_use(config, ("align_weight", "align_until"), aligned, *unread)


def _require_labels(config: TrainConfig) -> None:
    used = config.num_classes != 0
    unlabelled = "with --num-classes 0", "classes", "drop --num-classes"
    require_use(config, ("label_column",), used, *unlabelled)


def _require_text(config: TrainConfig) -> None:
    given = f"--conditioning {config.conditioning}"
    text = config.conditioning == "text"
    no_encoder = config.text_encoder is None and config.data != "digits"
    require_none_of(
        [
            (
                not text and config.text_encoder is not None,
                f"{given} with --text-encoder {config.text_encoder}",
                "--conditioning text with it",
                "pass --conditioning text, or drop --text-encoder",
            ),
            (
                text and no_encoder,
                f"{given} without --text-encoder for --data {config.data}",
                "a hub name or a folder of a text encoder",
                "pass --text-encoder",
            ),
            (
                text and config.num_classes is not None,
                f"{given} with --num-classes {config.num_classes}",
                "captions or classes, not both",
                "drop --num-classes: the captions are counted in the data",
            ),
            (
                text and not config.model.startswith("DiT-"),
                f"{given} with --model {config.model}",
                "a DiT, the only network with text conditioning",
                "pass --model DiT-S/2, or drop --conditioning text",
            ),
        ]
    )


def _require_generator(config: TrainConfig) -> None:
    """Refuse a classifier with settings of a network that generates images.

    `dit train-classifier` makes a TrainConfig without any of them.
    """
    generates = (
        config.label_dropout
        or config.eval_every
        or config.learn_sigma
        or config.loss != "simple"
        or config.objective != "v"
        or config.min_snr_gamma is not None
    )
    if generates and config.model.startswith("Classifier-"):
        raise _is_classifier(config.model)


def _is_classifier(model: str) -> UserError:
    return UserError(
        f"--model {model} is a classifier",
        "a network that draws images, a DiT or a UNet",
        "train a classifier with `dit train-classifier --run RUN`",
    )


def refuse_unread_flags(config: TrainConfig, typed: Set[str]) -> None:
    """Refuse flags on the command line that nothing would read.

    Saved settings of earlier versions may have such values, so they are not refused at once.

    Args:
        config: All settings.
        typed: Names of the settings that were typed.
    """
    if "model" in typed and config.model.startswith("Classifier-"):
        raise _is_classifier(config.model)

    flow_only = {"time_shift"}
    if config.time_sampling == "logit-normal":
        flow_only.add("time_sampling")
    scores = {"eval_samples", "eval_reference", "eval_extractor", "eval_weights"}
    dit, skips = config.model.startswith("DiT-"), config.on_divergence != "stop"
    no_classes = config.num_classes == 0 and config.label_dropout > 0
    resumed = config.resume not in (None, "auto")
    epochs = f"with --epochs {config.epochs or 0:g}"
    minutes = f"with --minutes {config.minutes or 0:g}"

    unread: list[tuple[bool, set[str], str, str]] = [
        (config.process != "flow", flow_only, f"with --process {config.process}", "--process flow"),
        (not dit, {"conditioning"}, f"with --model {config.model}", "a DiT"),
        (no_classes, {"label_dropout"}, "with --num-classes 0", "classes"),
        (config.epochs is not None, {"steps"}, epochs, "no --epochs"),
        (config.minutes is not None, {"steps", "epochs"}, minutes, "no --minutes"),
        (resumed, {"minutes"}, f"with --resume {config.resume}", "more --steps, or a new run"),
        (not skips, {"max_skips"}, "with --on-divergence stop", "skip or rollback"),
        (not config.eval_every, scores, "without --eval-every", "--eval-every"),
        (not config.gpus, {"gpu"}, "without --gpus", "--gpus"),
        (resumed, {"init"}, f"with --resume {config.resume}", "a new run"),
    ]
    for is_unread, names, given, expected in unread:
        if is_unread:
            require_none(config, sorted(names & typed), given, expected)

    if "gpus" in typed and not config.gpus:
        raise UserError("--gpus without a value", "numbers of GPUs", "pass --gpus 8 64 256")
    if "ema_lengths" in typed and not config.ema_lengths:
        given, do = "--ema-lengths without a value", "pass --ema-lengths 0.05 0.1, or drop it"
        raise UserError(given, "lengths to track", do)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Train a classifier of noised latents, to guide a run with (2105.05233)."""

    run: Path
    """Run to be guided: its directory, a checkpoint directory, or a file of EMA weights
    (.safetensors)."""
    data: str | None = None
    """Images or latents with classes, as in train.py; unless given, those of the run."""
    model: str = "Classifier-Ti/2"
    """Size and patch: Classifier-{Mi,Ti,S,B,L,XL,1B,3B,7B}/{1,2,4,8}; it may be smaller than the
    run's."""
    steps: int = 560
    """Optimizer steps in all."""
    global_batch_size: int = 64
    """Images per optimizer step, over all ranks."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW."""
    warmup: int | None = None
    """Steps of linear warm-up; unless given, as in train.py."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; auto: bf16 where the hardware has it."""
    compile: bool | None = None
    """Compile the network with torch.compile; unless given, on for CUDA and off for CPU, whose
    compiled code is kept in ~/.cache/dit (or $DIT_CACHE) for later runs."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing, as in train.py."""
    seed: int = 0
    """Seed of initial weights, order of data, times and noise."""
    out: Path | None = None
    """Run directory of the classifier; unless given, classifier/ in the run."""
    resume: str | None = None
    """Continue a classifier: its directory, or `auto` to continue --out if it has a checkpoint."""
    ckpt_every: int = 280
    """Steps between checkpoints; 0: only at the end."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl; 0: never."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory, tokens, data and schedule, and stop."""
