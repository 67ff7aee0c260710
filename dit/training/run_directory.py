"""Find the directory of a run, and whether it starts or continues in it."""

import dataclasses
import re
from functools import partial
from pathlib import Path

from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.card import CONFIG, ModelCard
from dit.runs.checkpoint_files import (
    checkpoint_step,
    is_run,
    latest_checkpoint,
    read_card,
    refuse_incomplete,
)
from dit.training.lr_schedule import total_steps
from dit.training.resume import check_checkpoint, require_same_settings
from dit.utils.files import printable, shell_quote, write_json
from dit.utils.outputs import require_creatable_folder, require_outside, require_own_folder


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
    ranks.on_main(partial(refuse_incomplete, run))
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
            f"pass `--resume {shell_quote(run)}` to continue it, or another --out",
        )
    ranks.on_main(partial(require_creatable_folder, run))
    ranks.on_main(partial(_require_utf8, run))
    if last is None:
        ranks.on_main(partial(require_outside, run, config.data))
        ranks.on_main(
            lambda: require_own_folder(run, "config.json of a run", "train.py", is_run(run))
        )
    return run, last


def _require_utf8(run: Path) -> None:
    if printable(str(run)) != str(run):
        raise UserError(
            f"--out {run}, a name that is not UTF-8",
            "a path that TensorBoard can open",
            "choose another --out; with LC_ALL=C, also LC_ALL=C.UTF-8",
        )


def open_run(card: ModelCard, images: int, ranks: Ranks) -> tuple[Path, Path | None]:
    """Return what `find_run` does, once its settings fit the card and the number of images."""
    run, last = find_run(card.config, ranks)
    if last:
        ranks.on_main(partial(check_checkpoint, run, last))
        require_same_settings(run, card)
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
    if config.resume is None or config.resume == "auto":
        return
    if config.out != Path(config.resume):
        raise UserError(
            f"--resume {config.resume} with --out {config.out}",
            "one run directory",
            "drop --out: a run continues where it is",
        )


def _next_free(config: TrainConfig) -> Path:
    """Return runs/NNN-DATA-MODEL with the next number."""
    # A pattern such as data/{0..9}.tar has characters that a shell would expand.
    last_part = Path(config.data).name
    data = re.sub(r"[^\w.-]+", "-", last_part).strip("-")
    others = Path("runs").glob("[0-9][0-9][0-9]-*")
    taken = (int(path.name[:3]) for path in others)
    number = max(taken, default=-1) + 1
    return Path("runs") / f"{number:03d}-{data}-{re.sub('[/:]', '-', config.model)}"


def write_card(run: Path, card: ModelCard, finished: bool) -> None:
    """Write config.json; a finished run keeps its own, since these settings train no step."""
    if not finished or not is_run(run):
        write_json(run / CONFIG, (read_card(run) if finished else card).to_json())
