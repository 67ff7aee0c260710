"""Flags of training, of a diffusion model or of a classifier to guide one."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dit.config.validation import require_lengths, require_none, require_range, require_sides
from dit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a diffusion model of images, on latents or pixels: by class, by caption, or unconditional."""

    preset: str = "digits"
    """Named configuration that gives the defaults of all other flags: digits, imagenet-256, imagenet-256-flow."""

    # -- data ------------------------------------------------------------------------------------------------
    data: str = "digits"
    """`digits` (1,797 handwritten digits, ships with scikit-learn), a folder with one subfolder of images per
    class, a folder of images without classes, a folder of latents written by `dit encode`, or tar shards or a data set
    of Hugging Face as that takes them; with --conditioning text a folder with a metadata.jsonl of captions, or one
    of the last three."""
    skip_damaged: bool = False
    """With a folder of latents: compare the checksum of every shard first, and train without those that are damaged."""
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
    """Size and patch: DiT-{Ti,S,B,L,XL,1B,3B,7B}/{1,2,4,8}; or UNet-{S,B}."""
    conditioning: Literal["adaln-zero", "adaln", "cross-attention", "in-context", "text"] = (
        "adaln-zero"
    )
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
    spike: float = 10.0
    """A step whose loss or gradient norm lies so many standard deviations above its running mean is left out, as is one
    that is not finite; 0 leaves out the latter alone."""
    on_divergence: Literal["stop", "skip", "rollback"] = "rollback"
    """What becomes of the run then: stop ends it at the first such step, skip once --max-skips in a row were left
    out; rollback goes back to the last checkpoint then, and on with other data."""
    max_skips: int = 5
    """How many steps in a row may be left out."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, which sampling uses."""
    ema_lengths: tuple[float, ...] = ()
    """Other averages to track: lengths relative to the steps done (sigma_rel of 2312.02696), such as 0.05 0.1, out of
    whose snapshots `dit ema` makes any length afterwards. Each takes the memory of the weights once more."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Arithmetic of the forward and backward pass; auto takes bf16 where the hardware has it. fp8: bf16, but the linear
    layers of a DiT's blocks multiply in float8, for GPUs of compute capability 8.9 or more, where it saves memory and
    may be slower (DiT-XL is); weights stay float32, and samples are drawn in bf16."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """On several ranks, what each of them holds: ddp all weights, fsdp its share of weights, EMA and optimizer; auto
    takes ddp where there is memory for it, by the estimate of --dry-run."""
    compile: bool | None = None
    """Compile the network with torch.compile; unless given, on for CUDA and off on CPU."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What of each block the backward pass computes again instead of keeping it (activation checkpointing): none;
    selective, all but matrix products; full, all, for the least memory and a third more work. Same gradients."""
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
    ema_every: int | None = None
    """Steps between snapshots of --ema-lengths, which are all kept; unless given, a 32nd of the steps."""
    keep: int = 2
    """How many checkpoints to keep, newest first, and the best one beside them where --eval-every is on."""
    keep_every: int = 0
    """Keep for ever the checkpoints at multiples of so many steps; 0 = none."""
    timeout: float = 30.0
    """Minutes without a step after which a run that hangs is ended, and the rank to blame named; 0 = never."""
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
    wandb: str | None = None
    """Project of Weights & Biases to show the log in too, for which wandb has to be installed; the run keeps its place
    there when it goes on."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory, tokens, data and schedule, and stop."""
    gpus: tuple[int, ...] = ()
    """With --dry-run: numbers of GPUs, such as 8 64 256, for which to print memory, communication and time too."""
    gpu: Literal["a100", "h100", "h200", "b200"] = "h100"
    """With --gpus: their kind, whose data sheet (of the SXM module) gives peak, memory and bandwidths."""

    def __post_init__(self) -> None:
        positive = (
            "global_batch_size",
            "grad_accum",
            "lr",
            "steps",
            "time_shift",
            "keep",
            "max_skips",
        )
        not_negative = (
            "warmup",
            "clip",
            "weight_decay",
            "sample_every",
            "ckpt_every",
            "log_every",
            "eval_every",
            "keep_every",
            "timeout",
            "spike",
        )
        require_range(self, ("seed",), lambda v: 0 <= v < 2**63, "a number in [0, 2^63)")
        require_range(self, positive, lambda v: v > 0, "a number above 0")
        require_sides(self)
        require_range(self, not_negative, lambda v: v >= 0, "0 or more")
        require_range(
            self, ("label_dropout", "ema", "beta2"), lambda v: 0 <= v < 1, "a number in [0, 1)"
        )
        require_range(self, ("eval_samples",), lambda v: v > 1, "2 or more")
        require_range(self, ("ema_every",), lambda v: v is None or v > 0, "a number above 0")
        require_lengths("--ema-lengths", self.ema_lengths)
        if self.ema_every and not self.ema_lengths:
            raise UserError(
                f"--ema-every {self.ema_every} without --ema-lengths",
                "lengths to store",
                "pass --ema-lengths 0.05 0.1, or drop --ema-every",
            )
        require_range(self, ("gpus",), lambda v: all(n > 0 for n in v), "numbers above 0")
        if self.gpus and not self.dry_run:
            raise UserError(
                f"--gpus {' '.join(map(str, self.gpus))} without --dry-run",
                "--dry-run with it",
                "add --dry-run, or drop --gpus",
            )
        require_range(self, ("cooldown",), lambda v: 0 <= v <= 1, "a number in [0, 1]")
        require_range(self, ("epochs", "min_snr_gamma"), lambda v: v is None or v > 0, "above 0")
        require_range(
            self, ("num_classes",), lambda v: v is None or 0 <= v <= 10**7, "from 0 to ten million"
        )
        if self.process == "flow" and self.objective == "eps":
            raise UserError(
                "--process flow with --objective eps",
                "--objective v or x0 with flow matching",
                "pure noise tells nothing of the data at t = 1: pass --objective v",
            )
        if self.process == "flow" and self.learn_sigma:
            raise UserError(
                "--process flow with --learn-sigma",
                "--process linear or cosine with --learn-sigma",
                "a flow has no variance to learn: drop --learn-sigma",
            )
        _require_text(self)
        _require_task(self)
        if self.unet_attention is not None and not self.model.startswith("UNet-"):
            given = " ".join(map(str, self.unet_attention))
            raise UserError(
                f"--unet-attention {given} with --model {self.model}",
                "a UNet with it",
                "pass --model UNet-S, or drop --unet-attention",
            )
        if self.precision == "fp8" and not self.model.startswith("DiT-"):
            raise UserError(
                f"--precision fp8 with --model {self.model}",
                "a DiT with it",
                "pass --precision bf16, or --model DiT-S/2",
            )
        if self.process == "flow" and self.time_sampling == "loss-aware":
            raise UserError(
                "--process flow with --time-sampling loss-aware",
                "--process linear or cosine with it",
                "it counts losses of whole noising steps: pass --time-sampling logit-normal",
            )
        if self.loss == "vlb" and not self.learn_sigma:
            raise UserError(
                f"--process {self.process} with --loss vlb and without --learn-sigma",
                "--process linear or cosine and --learn-sigma with --loss vlb",
                "the bound trains the variance too: add --learn-sigma, or pass --loss simple",
            )
        if self.loss == "vlb" and self.min_snr_gamma is not None:
            raise UserError(
                f"--loss vlb with --min-snr-gamma {self.min_snr_gamma:g}",
                "one of the two",
                "the bound has weights of its own: drop --min-snr-gamma, or pass --loss simple",
            )


def require_typed(config: TrainConfig, typed: Set[str]) -> None:
    """Refuse flags that were typed and that nothing would read; settings that earlier versions kept may be such too.

    Raises:
        UserError: the first of them, and the setting that makes it idle; or a classifier, which has its own command.
    """
    if "model" in typed and config.model.startswith("Classifier-"):
        raise _draws_nothing(config.model)
    times = {"time_shift"} | (
        {"time_sampling"} if config.time_sampling == "logit-normal" else set()
    )
    scores = {"eval_samples", "eval_reference", "eval_extractor", "eval_weights"}
    idle: list[tuple[bool, set[str], str, str, str]] = [
        (
            config.process != "flow",
            times,
            f"with --process {config.process}",
            "--process flow",
            "pass --process flow",
        ),
        (
            not config.model.startswith("DiT-"),
            {"conditioning"},
            f"with --model {config.model}",
            "a DiT",
            "pass --model DiT-S/2",
        ),
        (
            config.num_classes == 0 and config.label_dropout > 0,
            {"label_dropout"},
            "with --num-classes 0",
            "classes",
            "drop --num-classes",
        ),
        (
            config.epochs is not None,
            {"steps"},
            f"with --epochs {config.epochs or 0:g}",
            "no --epochs",
            "pass other --epochs",
        ),
        (
            config.on_divergence == "stop",
            {"max_skips"},
            "with --on-divergence stop",
            "--on-divergence skip or rollback",
            "pass another --on-divergence",
        ),
        (
            not config.eval_every,
            scores,
            "without --eval-every",
            "--eval-every",
            "pass --eval-every 500",
        ),
        (not config.gpus, {"gpu"}, "without --gpus", "--gpus", "pass --dry-run --gpus 8"),
        (
            config.resume not in (None, "auto"),
            {"init"},
            f"with --resume {config.resume}",
            "a new run",
            "drop --resume",
        ),
    ]
    for unread, names, given, expected, do in idle:
        require_none(config, sorted(names & typed if unread else set()), given, expected, do)
    if "gpus" in typed and not config.gpus:
        raise UserError("--gpus without a value", "numbers of GPUs", "pass --gpus 8 64 256")
    if "ema_lengths" in typed and not config.ema_lengths:
        raise UserError(
            "--ema-lengths without a value",
            "lengths to track",
            "pass --ema-lengths 0.05 0.1, or drop --ema-lengths",
        )


def _require_text(config: TrainConfig) -> None:
    given = f"--conditioning {config.conditioning}"
    if config.conditioning != "text":
        if config.text_encoder is not None:
            raise UserError(
                f"{given} with --text-encoder {config.text_encoder}",
                "--conditioning text with it",
                "pass --conditioning text, or drop --text-encoder",
            )
        return
    if config.text_encoder is None and config.data != "digits":
        raise UserError(
            f"{given} without --text-encoder for --data {config.data}",
            "a hub name or a folder of a text encoder",
            "pass --text-encoder",
        )
    if config.num_classes is not None:
        raise UserError(
            f"{given} with --num-classes {config.num_classes}",
            "captions or classes, not both",
            "drop --num-classes: the captions are counted in the data",
        )
    if not config.model.startswith("DiT-"):
        raise UserError(
            f"{given} with --model {config.model}",
            "a DiT, which alone hears of text",
            "pass --model DiT-S/2, or drop --conditioning text",
        )


def _require_task(config: TrainConfig) -> None:
    """Refuse what a classifier does not do: it draws no images, and predicts neither noise nor variance."""
    draws = (
        config.label_dropout
        or config.eval_every
        or config.learn_sigma
        or config.loss != "simple"
        or config.objective != "v"
        or config.min_snr_gamma is not None
    )
    if draws and config.model.startswith("Classifier-"):
        raise _draws_nothing(config.model)


def _draws_nothing(model: str) -> UserError:
    return UserError(
        f"--model {model} is a classifier",
        "a network that draws images, a DiT or a UNet",
        "train a classifier with `dit train-classifier --run RUN`",
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Train a classifier of noised latents, to guide a run with (2105.05233): data, autoencoder, process as there."""

    run: Path
    """Run to be guided: its directory, a checkpoint directory, or a file of EMA weights (.safetensors)."""
    data: str | None = None
    """Images or latents with classes, as in train.py; unless given, those that the run was trained on."""
    model: str = "Classifier-Ti/2"
    """Size and patch: Classifier-{Ti,S,B,L,XL,1B,3B,7B}/{1,2,4,8}; a smaller one than the run's will do."""
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
    recompute: Literal["none", "selective", "full"] = "none"
    """What of each block the backward pass computes again instead of keeping it (activation checkpointing): none;
    selective, all but matrix products; full, all, for the least memory and a third more work. Same gradients."""
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
