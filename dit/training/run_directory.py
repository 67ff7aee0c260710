"""Which directory a run lives in, and whether it starts there or goes on."""

import dataclasses
import re
import sys
from functools import partial
from pathlib import Path

from dit.config import TrainConfig, to_json
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.card import CONFIG, ModelCard
from dit.runs.checkpoints import (
    checkpoint_card,
    checkpoint_step,
    incomplete_checkpoints,
    is_run,
    latest_checkpoint,
    read_card,
    verify_checkpoint,
)
from dit.runs.weights import WEIGHTS
from dit.training.lr_schedule import total_steps
from dit.utils.files import require_free_space, shell_quote, write_json
from dit.utils.image_size import sides

FREE = {
    "preset",
    "out",
    "resume",
    "data",
    "vae",
    "steps",
    "epochs",
    "sample_every",
    "ckpt_every",
    "log_every",
    "keep",
    "dry_run",
    "gpus",
    "gpu",
    "compile",
    "grad_accum",
    "ema_every",
    "eval_every",
    "eval_reference",
    "eval_weights",
    "text_encoder",
    "parallel",
    "recompute",
    "keep_every",
    "timeout",
    "wandb",
    "skip_damaged",
}
"""Settings that may differ when a run goes on. `data`, `vae` and `text_encoder` may have moved: their classes, shapes
and checksum may not."""
DELIBERATE = {
    "lr",
    "weight_decay",
    "beta2",
    "warmup",
    "cooldown",
    "clip",
    "precision",
    "label_dropout",
    "eval_samples",
    "eval_extractor",
    "spike",
    "on_divergence",
    "max_skips",
}
"""Settings that may differ too when --resume names the run: the user means it."""


def begin(run: Path, asked: TrainConfig, ranks: Ranks) -> None:
    """Note that this very command, with the settings that it asked for, has begun a run there."""
    ranks.note(f"run for {asked.out}", str(run))


def restarted(asked: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The settings; where torchrun has started again what this very command had begun, as with `--resume auto`."""
    begun = ranks.recall(f"run for {asked.out}")
    if begun is None or asked.resume is not None:
        return asked
    return dataclasses.replace(asked, out=Path(begun), resume="auto")


def find_run(config: TrainConfig, ranks: Ranks) -> tuple[Path, Path | None]:
    """The run directory, and the checkpoint to go on from, if any; nothing is written.

    A run that ended before its first checkpoint starts again.

    Raises:
        UserError: it has checkpoints and --resume was not given, nothing to resume, or a place where no run can be.
    """
    _check_flags(config)
    run = ranks.share(config.out or _next_free(config))
    last = ranks.share(latest_checkpoint(run))
    if last is None and config.resume not in (None, "auto"):
        raise UserError(
            f"--resume {run}: no checkpoint there",
            "a run directory with checkpoints/",
            "drop --resume to start a run",
        )
    if last and config.resume is None:
        raise UserError(
            f"run directory {run} has checkpoints",
            "a new directory",
            f"pass --resume {shell_quote(run)} to go on with it, or another --out",
        )
    ranks.on_main(partial(require_free_space, run))
    if last is None:
        ranks.on_main(partial(_require_free, run))
    return run, last


def open_run(card: ModelCard, images: int, ranks: Ranks) -> tuple[Path, Path | None]:
    """As `find_run`, with the network and the number of images in the data known.

    Raises:
        UserError: as there; or a run of another configuration, or one that has done more steps than are asked for.
    """
    run, last = find_run(card.config, ranks)
    if last:
        ranks.on_main(partial(_look_at, run, last))
        _require_same(run, card)
        done, steps = checkpoint_step(last), total_steps(card.config, images)
        if done > steps:
            raise UserError(
                f"--steps {steps} for {run}, which has done {done}",
                "more steps than that",
                "pass more --steps",
            )
    return run, last


def _check_flags(config: TrainConfig) -> None:
    if config.resume == "auto" and config.out is None:
        raise UserError(
            "--resume auto without --out", "a run directory to continue or start", "add --out RUN"
        )
    if config.resume not in (None, "auto") and config.out != Path(config.resume or ""):
        raise UserError(
            f"--resume {config.resume} with --out {config.out}",
            "one run directory",
            "drop --out: a run goes on where it is",
        )


def _require_free(run: Path) -> None:
    """Refuse a folder of other things; files that are hidden, as a lock is, do no harm."""
    other = next((file.name for file in sorted(run.glob("[!.]*"))), None)
    if other is not None and not is_run(run):
        raise UserError(
            f"--out {run} is no run and holds other files, as {other}",
            "a run, or a new or empty folder",
            "pass another --out",
        )


def _next_free(config: TrainConfig) -> Path:
    data = re.sub(r"[^\w.-]+", "-", Path(config.data).name).strip(
        "-"
    )  # a pattern has characters to mind
    name = f"{data}-{config.model.replace('/', '-')}"
    taken = [int(p.name[:3]) for p in Path("runs").glob("[0-9][0-9][0-9]-*")]
    return Path("runs") / f"{max(taken, default=-1) + 1:03d}-{name}"


def _look_at(run: Path, last: Path) -> None:
    """Warn of newer checkpoints that are not counted, and of a config.json that is lost.

    Raises:
        UserError: config.json is not that of the checkpoint.
    """
    newer = [
        folder
        for folder in incomplete_checkpoints(run)
        if checkpoint_step(folder) > checkpoint_step(last)
    ]
    for folder in newer:
        print(
            f"warning: {folder} has no meta.json and is not counted; going on from {last.name}",
            file=sys.stderr,
        )
    if not is_run(run):
        print(
            f"warning: {run / CONFIG} is missing or damaged; taken from {last.name}, to be written anew",
            file=sys.stderr,
        )
    verify_checkpoint(last, WEIGHTS)
    require_settings(run, last)


def require_settings(run: Path, checkpoint: Path) -> list[str]:
    """What config.json has otherwise than a checkpoint of the run, as it may be once a run went on with other settings.

    Raises:
        UserError: a setting that never changes.
    """
    different = changes(checkpoint_card(checkpoint), read_card(run))
    if not different.keys() <= FREE | DELIBERATE:
        raise UserError(
            f"{run / CONFIG} is not that of {checkpoint.name} ({'; '.join(different.values())})",
            "the settings that it was trained with",
            f"put them back, or remove the file: train.py --resume {shell_quote(run)} writes it anew",
        )
    return [*different.values()]


def changes(then: ModelCard, now: ModelCard) -> dict[str, str]:
    """Settings that differ between two times of a run, by name, and in words; not of where it lies and how it began."""
    old, new = _identity(then), _identity(now)
    return {
        key: f"{key} {old[key]} before, {new[key]} now"
        for key in new
        if key not in ("out", "resume", "dry_run") and old[key] != new[key]
    }


def write_card(run: Path, card: ModelCard, finished: bool) -> None:
    """Write config.json; of a finished run, which these settings do not train, only where it is lost."""
    if not finished or not is_run(run):
        write_json(run / CONFIG, (read_card(run) if finished else card).to_json())


def _require_same(run: Path, card: ModelCard) -> None:
    before = read_card(run)
    require_autoencoder(
        card, before, run, "put that one back, or pass --vae with the place where it is now"
    )
    old, new = _identity(before), _identity(card)
    free = FREE | (DELIBERATE if card.config.resume not in (None, "auto") else set())
    different = [
        f"{key} {old[key]} there, {new[key]} now"
        for key in new
        if key not in free and old[key] != new[key]
    ]
    if different:
        raise UserError(
            f"run directory {run} has another configuration ({'; '.join(different)})",
            "the same settings",
            "use another --out, or the same flags",
        )


def require_autoencoder(card: ModelCard, before: ModelCard, run: object, do: str) -> None:
    """Refuse another autoencoder than that of `run`, by name or in words, whose card is `before`."""
    if before.vae_sha256 not in (None, card.vae_sha256):
        raise UserError(
            f"--vae {card.config.vae} with SHA-256 {str(card.vae_sha256)[:8]}",
            f"{before.vae_sha256[:8]}, the one that {run} was trained with",
            do,
        )


def _identity(card: ModelCard) -> dict[str, object]:
    size = {"image_size": list(sides(card.config.image_size))}
    return {
        **to_json(card.config),
        **size,
        **dataclasses.asdict(card.network),
        "classes": card.classes,
        "latent_mean": card.latent_mean,
        "latent_std": card.latent_std,
        "text_encoder_sha256": card.text_encoder_sha256,
    }
