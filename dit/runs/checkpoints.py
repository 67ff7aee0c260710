"""A run directory and what lies in it.

    config.json                 the Card: settings, network, classes
    metrics.jsonl               one line per logged step
    machine.json                what it was trained on, a record per start
    scores.json                 how scores in it were made, by their `eval`, where --eval-every is on
    samples/step-0000400.png    grids from the EMA
    ema/                        snapshots of the averages of --ema-lengths
    checkpoints/step-0000800/   state/ (to train on), ema-0.999.safetensors (to sample from), meta.json (checksums)
    best                        link to the checkpoint with the lowest Fréchet distance, where --eval-every is on

A weights file carries the Card in its header, so that it can be used without the run.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.weights import WEIGHTS, read_header
from dit.utils.files import reraise_as_user_error, sha256, shell_quote

BEST = "best"  # in a run, a link to its best checkpoint


def read_card(run: Path) -> ModelCard:
    """The Card of a run, where its config.json is lost that of its newest checkpoint.

    Raises:
        UserError: config.json is missing or damaged, and there is no checkpoint that has it too.
    """
    try:
        return ModelCard.read(run)
    except UserError:
        with suppress(UserError):
            if last := latest_checkpoint(run):
                return checkpoint_card(last)
        raise


def checkpoint_card(checkpoint: Path) -> ModelCard:
    """What the run was when it wrote a checkpoint; raises as `read_weights`."""
    return read_header(next(checkpoint.glob(WEIGHTS), checkpoint / WEIGHTS))[0]


def is_run(folder: Path) -> bool:
    """Whether training began there: it has the config.json of a run, not that of an autoencoder."""
    try:
        ModelCard.read(folder)
    except UserError:
        return False
    return True


def checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return [
        folder
        for folder in paths_by_step(run / "checkpoints").values()
        if (folder / "meta.json").exists()
    ]


def incomplete_checkpoints(run: Path) -> list[Path]:
    """Folders of checkpoints that have no meta.json and so are not counted, oldest first. A kill leaves none: what is
    being written or removed has a hidden name."""
    return [
        folder
        for folder in paths_by_step(run / "checkpoints").values()
        if not (folder / "meta.json").exists()
    ]


def run_containing(path: Path) -> Path | None:
    """The run that has this checkpoint, or to whose best one it links; None of other paths."""
    folder = path.absolute()
    if folder.parent.name == "checkpoints" and folder in paths_by_step(folder.parent).values():
        return Path(os.path.normpath(path / ".." / ".."))
    return path.parent if path.name == BEST and path.is_symlink() else None


def paths_by_step(folder: Path, suffix: str = "") -> dict[int, Path]:
    """What is called step-DIGITS and the suffix, by that number, lowest first; what is called otherwise is not ours."""
    named = re.compile(rf"step-([0-9]+){re.escape(suffix)}")
    found = {
        int(match[1]): path
        for path in folder.glob("step-*")
        if (match := named.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step-{step:07d}"


def checkpoint_step(checkpoint: Path) -> int:
    """The inverse of `checkpoint_name`."""
    return int(checkpoint.name.removeprefix("step-"))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run."""
    return next(reversed(checkpoints(run)), None)


def verify_checkpoint(checkpoint: Path, pattern: str = "*") -> dict[str, Any]:
    """The checkpoint's meta.json, after comparing every file that fits the pattern with it.

    Raises:
        UserError: a file that is missing, truncated or changed; or they are not of one step.
    """
    do = f"remove {checkpoint} to go on from the checkpoint before it"
    with reraise_as_user_error(
        checkpoint / "meta.json", "the list of files that train.py wrote", do
    ):
        meta = json.loads((checkpoint / "meta.json").read_text())
        step, files = int(meta["step"]), dict(meta["files"])
    for name, recorded in files.items():
        if fnmatch(name, pattern):
            require_intact(checkpoint / name, recorded, do)
    _require_one_step(
        checkpoint, step, [checkpoint / name for name in files if fnmatch(name, WEIGHTS)], do
    )
    return {"step": step, "files": files}


def _require_one_step(checkpoint: Path, step: int, weights: list[Path], do: str) -> None:
    """Refuse a checkpoint that is of several steps, by its folder's name (if that is of ours), meta.json, weights."""
    named = [
        number
        for number, folder in paths_by_step(checkpoint.parent).items()
        if folder == checkpoint
    ]
    said = {
        "its name": named[0] if named else step,
        "meta.json": step,
        **{file.name: read_header(file)[1] for file in weights},
    }
    if len({*said.values()}) > 1:
        told = ", ".join(f"{number} by {what}" for what, number in said.items())
        raise UserError(f"{checkpoint} is of step {told}", "one step", do)


def checksum_entry(file: Path) -> dict[str, Any]:
    """What meta.json lists of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def require_intact(file: Path, recorded: Mapping[str, Any], do: str) -> None:
    """Compare a file with what the meta.json beside it lists.

    Raises:
        UserError: it is missing, truncated or changed.
    """
    found = checksum_entry(file) if file.exists() else {"bytes": 0}
    for what, value in recorded.items():
        if found.get(what) != value:
            raise UserError(
                f"{file} has {what} {found.get(what)}", f"{value}, as its meta.json says", do
            )


def find_weights(path: Path) -> Path:
    """The weights file that a run, a checkpoint or a file stands for.

    Raises:
        UserError: there is none, or its checkpoint is damaged.
    """
    if path.is_file():
        return path
    checkpoint = path if (path / "meta.json").exists() else latest_checkpoint(path)
    if checkpoint is None:
        raise _no_weights(path)
    if (
        checkpoint.is_symlink()
    ):  # RUN/best: what it names lies in the run, where samples of it belong too
        checkpoint = checkpoint.parent / checkpoint.readlink()
    verify_checkpoint(checkpoint, WEIGHTS)
    return next(checkpoint.glob(WEIGHTS))


def _no_weights(path: Path) -> UserError:
    """What lies there instead of a checkpoint."""
    expected = "a run directory, a checkpoint directory or a .safetensors file"
    if is_run(path):
        return UserError(
            f"no checkpoint in {path}, a run that has none yet",
            "a run with a checkpoint",
            "wait for its first, or start it again with the flags that it had",
        )
    if (path / "config.json").is_file():
        return UserError(
            f"no checkpoint in {path}, which has the config.json of another network",
            expected,
            f"see what it is: dit info {shell_quote(path)}; an autoencoder goes to --vae of train.py",
        )
    if not path.exists():
        return UserError(f"no checkpoint in {path}, which is not there", expected, "check the path")
    return UserError(f"no checkpoint in {path}", expected, "train one: python train.py --out RUN")


class Distance(NamedTuple):
    """A Fréchet distance by the name it is shown with; `eval` is the same where two were measured in the same way."""

    name: str
    value: float
    eval: str


class Best(NamedTuple):
    """The checkpoint whose EMA has the lowest distance."""

    checkpoint: Path
    distance: Distance


def find_best(run: Path, eval: str | None = None) -> Best | None:
    """The best of a run's checkpoints, the first of equal ones, among those measured as `eval` or, unless given, as the
    newest that has a distance."""
    scored = [
        Best(path, distance) for path in checkpoints(run) if (distance := read_distance(path))
    ]
    alike = [one for one in scored if one.distance.eval == (eval or scored[-1].distance.eval)]
    return min(alike, key=lambda one: one.distance.value, default=None)


def read_distance(checkpoint: Path) -> Distance | None:
    """What a checkpoint's meta.json says of its distance; None where it was not measured, or the file is damaged."""
    try:
        return Distance(**json.loads((checkpoint / "meta.json").read_text())["distance"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_distance(name: str) -> bool:
    """Whether a score is a Fréchet distance."""
    return name == "FID" or name.startswith("FD(")
