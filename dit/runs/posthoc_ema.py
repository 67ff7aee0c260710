"""EMA after the fact (2312.02696, section 3.2): snapshots of a few averages of a training become that of any length."""

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dit.config.validation import MEAN
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoints import checkpoint_name, checksum_entry
from dit.runs.ema_profiles import fit
from dit.runs.weights import read_header, write_weights
from dit.utils.files import flush, reraise_as_user_error, shell_quote, write_atomically, write_json

FOLDER = "ema"  # of snapshots, in a run
WORST = 0.1  # error of a fit with which weights are still made
SHORTEST = 0.002  # length that is looked at when a message tells which ones can be made
RECORD = Path(FOLDER) / "meta.json"  # their sizes and checksums
ANY = "length-*-step-*.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """A file of RUN/ema: weights of one average at one step."""

    file: Path
    card: ModelCard
    step: int

    @property
    def length(self) -> float:
        """Of the average, relative to the steps done."""
        assert self.card.ema_length
        return self.card.ema_length


@dataclass(frozen=True)
class Mixture:
    """An average as a sum of snapshots.

    Args:
        length: relative to `step`, where the average ends.
        coefficients: of the snapshots, with a sum of 1.
        error: of its profile, as `fit` has it.
    """

    length: float
    step: int
    snapshots: list[Snapshot]
    coefficients: list[float]
    error: float

    @property
    def card(self) -> ModelCard:
        """What the weights are."""
        return replace(self.snapshots[-1].card, ema_length=self.length)

    def weights(self) -> dict[str, Tensor]:
        """Float32, summed in float64, one tensor after the other, which are read as they are needed.

        Raises:
            UserError: a snapshot is damaged.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(s.file, framework="pt")) for s in self.snapshots]
            names = files[-1].keys()
            return {name: self._sum(files, name) for name in names}

    def _sum(self, files: Sequence[safe_open], name: str) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for file, snapshot, coefficient in zip(
            files, self.snapshots, self.coefficients, strict=True
        ):
            try:
                total = total + coefficient * file.get_tensor(name).double()
            except (SafetensorError, RuntimeError) as error:
                raise UserError(
                    f"{snapshot.file} does not fit the others ({error})",
                    "snapshots of one network",
                    f"remove {snapshot.file}",
                ) from None
        return total.float()

    def __str__(self) -> str:
        lengths = ", ".join(f"{length:g}" for length in sorted({s.length for s in self.snapshots}))
        return (
            f"length {self.length:g} at step {self.step:,}: {_told(self.error)}, {len(self.snapshots)} snapshots "
            f"of lengths {lengths}"
        )


def file_name(length: float, step: int) -> str:
    """Of weights of an average."""
    return f"length-{length:g}-{checkpoint_name(step)}.safetensors"


def default_file(run: Path, mixture: Mixture) -> Path:
    """Where a run's own averages lie, so that samples of them belong to the run."""
    return run / f"ema-{file_name(mixture.length, mixture.step)}"


# -- snapshots -----------------------------------------------------------------------------------------------------


def write_snapshot(
    run: Path, weights: dict[str, Tensor], card: ModelCard, length: float, step: int
) -> None:
    """Add a file to RUN/ema, whole or not at all.

    Raises:
        UserError: the disk is full or read-only.
    """
    file = run / FOLDER / file_name(length, step)
    try:
        with write_atomically(file) as beside:
            write_weights(beside, weights, replace(card, ema_length=length), step)
            flush(beside)
        flush(file.parent)
        write_json(
            run / RECORD, {"files": recorded_snapshots(run) | {file.name: checksum_entry(file)}}
        )
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} could not be written ({error})",
            "a writable disk with free space",
            f"make room and continue with --resume {shell_quote(run)}",
        ) from error


def drop_after(run: Path, step: int) -> None:
    """Remove what steps after this one left: snapshots, averages made of them, and halves of files."""
    made = [*_ours(run / FOLDER), *_ours(run, "ema-")]
    later = [file for file in made if _step(file) > step]
    for file in (*later, *(run / FOLDER).glob(f".{ANY}.*")):
        file.unlink()
    if listed := recorded_snapshots(run):
        write_json(
            run / RECORD,
            {
                "files": {
                    name: value
                    for name, value in listed.items()
                    if _step(run / FOLDER / name) <= step
                }
            },
        )


def recorded_snapshots(run: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of snapshots by file name; earlier versions listed none.

    Raises:
        UserError: the list is damaged.
    """
    file = run / RECORD
    if not file.exists():
        return {}
    with reraise_as_user_error(file, "the list of snapshots that train.py wrote", f"remove {file}"):
        return dict(json.loads(file.read_text())["files"])


def snapshot_steps(run: Path) -> list[int]:
    """The step of every snapshot of a run, by their names."""
    return [_step(file) for file in _ours(run / FOLDER)]


def _ours(folder: Path, prefix: str = "") -> list[Path]:
    """Files of averages, but none that is called otherwise than we do."""
    return [file for file in folder.glob(prefix + ANY) if re.search(r"-step-[0-9]+\Z", file.stem)]


def _step(file: Path) -> int:
    return int(file.stem.rsplit("-", 1)[1])


def find_snapshots(run: Path) -> list[Snapshot]:
    """Those of a run, the earliest first.

    Raises:
        UserError: there are none, or one is damaged or of another network.
    """
    found = [Snapshot(file, *read_header(file)) for file in _ours(run / FOLDER)]
    found = sorted((s for s in found if s.card.ema_length), key=lambda s: (s.step, s.length))
    if not found:
        raise UserError(
            f"no snapshots of averages in {run / FOLDER}",
            "the directory of a run with --ema-lengths",
            "check the path, or train with --ema-lengths 0.05 0.1",
        )
    for snapshot in found:
        if snapshot.card.network != found[-1].card.network:
            raise UserError(
                f"{snapshot.file} is of {snapshot.card.network.model}, {found[-1].file.name} of another "
                f"network",
                "snapshots of one run",
                "remove those of another run",
            )
    return found


# -- averages ------------------------------------------------------------------------------------------------------


def mixtures(run: Path, lengths: Sequence[float], step: int | None = None) -> list[Mixture]:
    """How averages of these lengths come of the snapshots of a run.

    Args:
        step: where they end; the last with snapshots unless given.

    Raises:
        UserError: no snapshots there, or lengths that can not be made of them well.
    """
    found = find_snapshots(run)
    end = _find_end(run, {snapshot.step for snapshot in found}, step)
    used = [snapshot for snapshot in found if snapshot.step <= end]
    known = [s.step for s in used], [s.length for s in used], end
    coefficients, errors = fit(*known, lengths)
    for length, error in zip(lengths, errors, strict=True):
        if error > WORST:
            tried = np.array([*np.geomspace(SHORTEST, 0.999 * MEAN, 100), *known[1]])
            good = tried[fit(*known, tried)[1] <= WORST]
            raise UserError(
                f"length {length:g} at step {end:,}, of {len(used)} snapshots in {run / FOLDER}: "
                f"{_told(error)}",
                f"{100 * WORST:g}% at most, which lengths from {min(good):.3g} to "
                f"{max(good):.3g} have",
                "pass one of those; in another training, a smaller --ema-every or "
                "other --ema-lengths allow others",
            )
    return [
        Mixture(length, end, used, values.tolist(), float(error))
        for length, values, error in zip(lengths, coefficients.T, errors, strict=True)
    ]


def _find_end(run: Path, steps: set[int], asked: int | None) -> int:
    if asked is not None and asked not in steps:
        near = sorted(sorted(steps, key=lambda step: abs(step - asked))[:3])
        raise UserError(
            f"--step {asked} for {run}",
            f"a step with snapshots, such as {', '.join(map(str, near))}",
            "pass one of them, or drop --step to take the last",
        )
    return max(steps) if asked is None else asked


def write_mixture(mixture: Mixture, file: Path) -> None:
    """Make an average and write it as weights that `sample.py --run` takes, whole or not at all."""
    with write_atomically(file) as beside:
        write_weights(beside, mixture.weights(), mixture.card, mixture.step)


def _told(error: float) -> str:
    return f"error of the fit {100 * error:.2g}%"
