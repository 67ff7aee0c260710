"""Find the directory of a run, and whether it starts or continues in it."""

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
from dit.utils.files import require_creatable_folder, shell_quote, write_json
from dit.utils.image_size import sides

MAY_CHANGE = {
    *("preset", "out", "resume", "data", "vae", "text_encoder", "skip_damaged"),
    *("steps", "epochs", "dry_run", "gpus", "gpu", "timeout", "wandb", "log_every", "sample_every"),
    *("ckpt_every", "keep", "keep_every", "ema_every"),
    *("eval_every", "eval_reference", "eval_weights"),
    *("compile", "grad_accum", "parallel", "recompute"),
}
"""Settings that may differ when a run continues.

`data`, `vae` and `text_encoder` may have moved: their classes, shapes and checksums may not change.
"""
MAY_CHANGE_BY_NAME = {
    *("lr", "weight_decay", "beta2", "warmup", "cooldown", "clip", "precision", "label_dropout"),
    *("spike", "on_divergence", "max_skips", "eval_samples", "eval_extractor"),
}
"""Settings that may differ too when --resume names the run: the user means it."""


def note_start(run: Path, asked: TrainConfig, ranks: Ranks) -> None:
    """Note for `with_restart` that this command has started this run."""
    ranks.note(_restart_key(asked), str(run))


def with_restart(asked: TrainConfig, ranks: Ranks) -> TrainConfig:
    """Return the settings; with `--resume auto` if torchrun started this command again."""
    started = ranks.recall(_restart_key(asked))
    if started is None or asked.resume is not None:
        return asked
    return dataclasses.replace(asked, out=Path(started), resume="auto")


def _restart_key(asked: TrainConfig) -> str:
    return f"run for {asked.out}"


def find_run(config: TrainConfig, ranks: Ranks) -> tuple[Path, Path | None]:
    """Return the run directory, and the checkpoint to continue from, if any; write nothing.

    A run that ended before its first checkpoint starts again.
    """
    _check_flags(config)
    # Rank 0 decides, since another machine may see the file system a moment later.
    run = ranks.broadcast(config.out or _next_free(config))
    last = ranks.broadcast(latest_checkpoint(run))
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
            f"pass --resume {shell_quote(run)} to continue it, or another --out",
        )
    ranks.on_main(partial(require_creatable_folder, run))
    if last is None:
        ranks.on_main(partial(_require_no_other_files, run))
    return run, last


def open_run(card: ModelCard, images: int, ranks: Ranks) -> tuple[Path, Path | None]:
    """Return what `find_run` does, once its settings fit the card and the number of images."""
    run, last = find_run(card.config, ranks)
    if last:
        ranks.on_main(partial(_check_checkpoint, run, last))
        _require_same_settings(run, card)
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
            "drop --out: a run continues where it is",
        )


def _require_no_other_files(run: Path) -> None:
    """Refuse a folder of other things; hidden files, such as a lock, do no harm."""
    other = next((file.name for file in sorted(run.glob("[!.]*"))), None)
    if other is not None and not is_run(run):
        raise UserError(
            f"--out {run} is no run and holds other files, as {other}",
            "a run, or a new or empty folder",
            "pass another --out",
        )


def _next_free(config: TrainConfig) -> Path:
    """Return runs/NNN-DATA-MODEL with the next number."""
    # A pattern such as data/{0..9}.tar has characters that a shell would expand.
    data = re.sub(r"[^\w.-]+", "-", Path(config.data).name).strip("-")
    taken = [int(path.name[:3]) for path in Path("runs").glob("[0-9][0-9][0-9]-*")]
    number = max(taken, default=-1) + 1
    return Path("runs") / f"{number:03d}-{data}-{config.model.replace('/', '-')}"


def _check_checkpoint(run: Path, last: Path) -> None:
    """Verify weights and settings; warn of newer, incomplete checkpoints and a lost config.json."""
    done = checkpoint_step(last)
    for folder in incomplete_checkpoints(run):
        if checkpoint_step(folder) > done:
            incomplete = f"{folder} has no meta.json and is not counted"
            print(f"warning: {incomplete}; continuing from {last.name}", file=sys.stderr)
    if not is_run(run):
        print(
            f"warning: {run / CONFIG} is missing or damaged; restored from {last.name}",
            file=sys.stderr,
        )
    verify_checkpoint(last, WEIGHTS)
    require_settings(run, last)


def require_settings(run: Path, checkpoint: Path) -> list[str]:
    """Return in words how config.json differs from a checkpoint, as after --resume with new flags.

    Settings that never change are refused.
    """
    different = changes(checkpoint_card(checkpoint), read_card(run))
    if not different.keys() <= MAY_CHANGE | MAY_CHANGE_BY_NAME:
        raise UserError(
            f"{run / CONFIG} is not that of {checkpoint.name} ({'; '.join(different.values())})",
            "the settings that it was trained with",
            f"put them back, or remove the file: train.py --resume {shell_quote(run)} restores it",
        )
    return [*different.values()]


def changes(then: ModelCard, now: ModelCard) -> dict[str, str]:
    """Return settings that changed in the course of a run, by name, in words."""
    old, new = _all_settings(then), _all_settings(now)
    return {
        key: f"{key} {old[key]} before, {new[key]} now"
        for key in new
        if key not in ("out", "resume", "dry_run") and old[key] != new[key]
    }


def write_card(run: Path, card: ModelCard, finished: bool) -> None:
    """Write config.json; a finished run keeps its own, since these settings train no step."""
    if not finished or not is_run(run):
        write_json(run / CONFIG, (read_card(run) if finished else card).to_json())


def _require_same_settings(run: Path, card: ModelCard) -> None:
    before = read_card(run)
    require_autoencoder(card, before, run, "put that one back, or pass --vae with its new path")

    # `auto` stands in scripts that run again and again, where a changed flag is a slip.
    allowed = set(MAY_CHANGE)
    if card.config.resume not in (None, "auto"):
        allowed |= MAY_CHANGE_BY_NAME
    old, new = _all_settings(before), _all_settings(card)
    different = [key for key in new if key not in allowed and old[key] != new[key]]
    if different:
        words = "; ".join(f"{key} {old[key]} there, {new[key]} now" for key in different)
        raise UserError(
            f"run directory {run} has another configuration ({words})",
            "the same settings",
            "use another --out, or the same flags",
        )


def require_autoencoder(card: ModelCard, before: ModelCard, run: object, do: str) -> None:
    """Refuse another autoencoder than that of `before`, the card of `run`."""
    if before.vae_sha256 not in (None, card.vae_sha256):
        raise UserError(
            f"--vae {card.config.vae} with SHA-256 {str(card.vae_sha256)[:8]}",
            f"{before.vae_sha256[:8]}, the one that {run} was trained with",
            do,
        )


def _all_settings(card: ModelCard) -> dict[str, object]:
    return {
        **to_json(card.config),
        "image_size": list(sides(card.config.image_size)),
        **dataclasses.asdict(card.network),
        "classes": card.classes,
        "latent_mean": card.latent_mean,
        "latent_std": card.latent_std,
        "text_encoder_sha256": card.text_encoder_sha256,
    }
