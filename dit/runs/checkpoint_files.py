"""A run directory and its checkpoints.

    config.json                 the model card: settings, network, classes
    metrics.jsonl               one line per logged step
    machine.json                hardware and versions, one record per start
    scores.json                 protocols of the scores, by their `eval` (--eval-every)
    samples/step-0000400.png    grids from the EMA
    ema/                        snapshots of the averages of --ema-lengths
    checkpoints/step-0000800/   state/ (to train on), ema-0.999.safetensors (to sample from),
                                meta.json (checksums)
    best                        link to the checkpoint with the lowest distance (--eval-every)

A weights file has the card in its header, so that it can be used without the run.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypedDict

from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.formats.diffusers_folder import find_network
from dit.runs.weights import WEIGHTS, read_header
from dit.utils.files import sha256, shell_quote
from dit.utils.typed_json import read_json

BEST = "best"  # in a run, a link to its best checkpoint
META = "meta.json"
SAVED = "model.safetensors"  # weights in a folder of `dit export`
STATE = (".safetensors", ".json")  # endings of the files in state/


class Listed(TypedDict):
    """What meta.json lists about a file."""

    bytes: int
    sha256: str


class Meta(TypedDict):
    """The content of a checkpoint's meta.json; with a distance, `ScoredMeta`."""

    step: int
    files: dict[str, Listed]


def read_card(run: Path) -> ModelCard:
    """Return the card of a run; if its config.json is lost, that of its newest checkpoint."""
    try:
        return ModelCard.read(run)
    except UserError:
        # if the checkpoint is damaged too, the error about config.json is the one to show
        with suppress(UserError):
            if last := latest_checkpoint(run):
                return checkpoint_card(last)
        raise


def checkpoint_card(checkpoint: Path) -> ModelCard:
    """Return the card of the run when it wrote a checkpoint."""
    return read_header(next(checkpoint.glob(WEIGHTS), checkpoint / WEIGHTS))[0]


def is_run(folder: Path) -> bool:
    """Whether a folder has the config.json of a run, not that of an autoencoder."""
    try:
        ModelCard.read(folder)
    except UserError:
        return False
    return True


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folders = paths_by_step(run / "checkpoints").values()
    return [folder for folder in folders if (folder / META).exists()]


def incomplete_checkpoints(run: Path) -> list[Path]:
    """Return the folders of checkpoints without meta.json, oldest first.

    A kill leaves none: what is being written or removed has a hidden name.
    """
    folders = paths_by_step(run / "checkpoints").values()
    return [folder for folder in folders if not (folder / META).exists()]


def notes_on_incomplete(run: Path, doing: str) -> list[str]:
    """Return a note for each incomplete checkpoint that is newer than the newest complete one.

    Args:
        doing: What is done with the latter, such as "sampling from".
    """
    if (last := latest_checkpoint(run)) is None:
        return []
    newer = [f for f in incomplete_checkpoints(run) if checkpoint_step(f) > checkpoint_step(last)]
    return [f"{f} has no meta.json and is not counted; {doing} {last.name}" for f in newer]


def refuse_incomplete(run: Path) -> None:
    """Refuse a run none of whose checkpoints is complete: to start it again loses its work."""
    incomplete = incomplete_checkpoints(run)
    if not incomplete or checkpoints(run):
        return
    names = ", ".join(folder.name for folder in incomplete)
    raise UserError(
        f"no checkpoint in {run} is complete: {names} without meta.json",
        "a full copy of the run",
        f"copy it again; to start from step 0, move {run / 'checkpoints'} away first",
    )


def run_containing(path: Path) -> Path | None:
    """Return the run of a checkpoint, or of a link to its best one; None for other paths."""
    folder = path.absolute()
    if folder.parent.name == "checkpoints" and folder in paths_by_step(folder.parent).values():
        # as the user would type it: relative paths stay relative
        return Path(os.path.normpath(path / ".." / ".."))
    return path.parent if path.name == BEST and path.is_symlink() else None


def paths_by_step(folder: Path, suffix: str = "") -> dict[int, Path]:
    """Return the paths named step-DIGITS and the suffix by their number, lowest first."""
    pattern = re.compile(rf"step-([0-9]+){re.escape(suffix)}")
    paths = {}
    for path in folder.glob("step-*"):
        if match := pattern.fullmatch(path.name):
            paths[int(match[1])] = path
    return dict(sorted(paths.items()))


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:07d}"


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step of a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run."""
    return next(reversed(checkpoints(run)), None)


# -- checksums -------------------------------------------------------------------------------------


def verify_checkpoint(checkpoint: Path, pattern: str = "*") -> Meta:
    """Return step and files of a checkpoint's meta.json, after checking files that fit the pattern.

    A file that is missing, truncated, changed or not listed is refused, and so are files of
    different steps.
    """
    do = _advice(checkpoint)
    meta = read_json(checkpoint / META, Meta, "the list of files that train.py wrote", do)
    step, files = meta["step"], meta["files"]
    _require_complete(checkpoint, files, do)

    for name, recorded in files.items():
        if fnmatch(name, pattern):
            require_intact(checkpoint / name, recorded, do)
    _require_one_step(checkpoint, step, [name for name in files if fnmatch(name, WEIGHTS)], do)
    return meta


def _advice(checkpoint: Path) -> str:
    """Return what to do about a damaged checkpoint."""
    others = paths_by_step(checkpoint.parent).values()
    intact = [other for other in others if other < checkpoint and (other / META).exists()]
    if intact:
        return f"remove {checkpoint} to go on from {intact[-1].name}, the checkpoint before it"
    return f"copy {checkpoint} again: there is no checkpoint before it"


def _require_complete(checkpoint: Path, listed: Iterable[str], do: str) -> None:
    """Refuse a list without weights, or without a file of the weights and the state.

    A file that nobody lists is one that nobody verifies.
    """
    weights = [file.name for file in checkpoint.glob(WEIGHTS)] or [WEIGHTS]
    # other files there, as file managers leave, are not read
    parts = [file for ending in STATE for file in checkpoint.glob(f"state/[!.]*{ending}")]
    state = [f"state/{file.name}" for file in parts]
    for name in sorted([*weights, *state]):
        if not any(fnmatch(one, name) for one in listed):
            given = f"{checkpoint / META} does not list {name}"
            raise UserError(given, "the checksum of each file of the checkpoint", do)


def _require_one_step(checkpoint: Path, step: int, weights: list[str], do: str) -> None:
    """Refuse a checkpoint whose name, meta.json and weights are of different steps."""
    steps = {"meta.json": step}
    # a folder that was renamed otherwise says nothing about the step
    if checkpoint in paths_by_step(checkpoint.parent).values():
        steps = {"its name": checkpoint_step(checkpoint), **steps}
    for name in weights:
        steps[name] = read_header(checkpoint / name)[1]

    if len(set(steps.values())) > 1:
        sources = ", ".join(f"{number} by {source}" for source, number in steps.items())
        raise UserError(f"{checkpoint} is of step {sources}", "one step", do)


def checksum_entry(file: Path) -> Listed:
    """Return what meta.json lists about a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def require_intact(file: Path, recorded: Listed, do: str) -> None:
    """Refuse a file that differs from what the meta.json beside it lists."""
    actual: Mapping[str, object] = checksum_entry(file) if file.is_file() else {"bytes": 0}
    for key, value in recorded.items():
        if actual.get(key) != value:
            given, expected = f"{file} has {key} {actual.get(key)}", f"{value}"
            if key == "bytes":
                given, expected = f"{file} has {actual[key]:,} bytes", f"{value:,}"
            raise UserError(given, f"{expected}, as its meta.json says", do)


# -- weights to sample from ------------------------------------------------------------------------


def find_weights(path: Path) -> Path:
    """Return the weights file of a run, a checkpoint or another folder, after checking it.

    A folder may be one of `dit export`, or a pipeline of diffusers.

    Raises:
        UserError: there is none, or its checkpoint is damaged.
    """
    if path.is_file():
        return path
    checkpoint = path if (path / META).exists() else latest_checkpoint(path)
    if checkpoint is None:
        if saved := find_saved(path):
            return saved
        refuse_incomplete(path)
        raise _no_weights(path)
    if checkpoint.is_symlink():
        # RUN/best: samples belong to the run of the checkpoint that it links to
        checkpoint = checkpoint.parent / checkpoint.readlink()
    verify_checkpoint(checkpoint, WEIGHTS)
    return next(checkpoint.glob(WEIGHTS))


def find_saved(folder: Path) -> Path | None:
    """Return the weights in a folder of `dit export` or of diffusers; None if it is neither."""
    file = folder / SAVED
    return file if file.is_file() else find_network(folder)


def _no_weights(path: Path) -> UserError:
    """Return the error for a path without a checkpoint: what it is instead, and what to do."""
    given = f"no checkpoint in {path}"
    expected = (
        "a run directory, a checkpoint directory, a .safetensors file, or a folder of `dit export` "
        "or of a DiT of diffusers"
    )
    if is_run(path):
        given += ", a run that has none yet"
        do = "wait for its first, or start it again with the flags that it had"
        return UserError(given, "a run with a checkpoint", do)
    if (path / "config.json").is_file():
        given += ", which has the config.json of another network"
        do = f"see `dit info {shell_quote(path)}`; an autoencoder goes to `train.py --vae`"
        return UserError(given, expected, do)
    if not path.exists():
        return UserError(f"{given}, which is not there", expected, "check the path")
    return UserError(given, expected, "train one: `python train.py --out RUN`")


# -- the best checkpoint ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """A Fréchet distance: its printed name, its value, and a key shared by comparable distances."""

    name: str
    value: float
    eval: str


class ScoredMeta(Meta):
    """The meta.json of a checkpoint whose EMA was scored."""

    distance: Distance


@dataclass(frozen=True)
class Best:
    """The checkpoint whose EMA has the lowest distance."""

    checkpoint: Path
    distance: Distance


def find_best(run: Path, eval: str | None = None) -> Best | None:
    """Return the best of a run's checkpoints, the first of equal ones.

    Args:
        eval: which distances to compare; unless given, those of the newest checkpoint that has one.
    """
    scored = []
    for path in checkpoints(run):
        if distance := read_distance(path):
            scored.append(Best(path, distance))
    # distances to different references, or of different samples, do not compare
    comparable = [one for one in scored if one.distance.eval == (eval or scored[-1].distance.eval)]
    return min(comparable, key=lambda one: one.distance.value, default=None)


def read_distance(checkpoint: Path) -> Distance | None:
    """Return the distance in a checkpoint's meta.json, if it was measured and can be read."""
    try:
        return read_json(checkpoint / META, ScoredMeta, "", "")["distance"]
    except UserError:
        return None


def is_distance(name: str) -> bool:
    """Whether a score is a Fréchet distance."""
    return name == "FID" or name.startswith("FD(")
