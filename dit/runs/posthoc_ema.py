"""Post-hoc EMA (2312.02696, section 3.2): an average of any length, from snapshots of a few."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dit.config.validation import PLAIN_MEAN_LENGTH
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import Listed, checkpoint_name, checksum_entry
from dit.runs.ema_profiles import fit
from dit.runs.weights import read_header, require_usable, write_weights
from dit.utils.files import shell_quote, write_atomically, write_json
from dit.utils.system import sync_to_disk
from dit.utils.typed_json import read_json

FOLDER = "ema"  # of snapshots, in a run
RECORD = Path(FOLDER) / "meta.json"  # their sizes and checksums
ANY = "length-*-step-*.safetensors"
WORST = 0.1  # largest accepted error of a fit
SHORTEST = 0.002  # length that an error message tries


class Record(TypedDict):
    """The content of RUN/ema/meta.json."""

    files: dict[str, Listed]


@dataclass(frozen=True)
class Snapshot:
    """A file of RUN/ema: weights of one average at one step."""

    file: Path
    card: ModelCard
    step: int

    @property
    def length(self) -> float:
        """Return the length of the average, relative to the steps done."""
        assert self.card.ema_length
        return self.card.ema_length


@dataclass(frozen=True)
class Mixture:
    """An average as a sum of snapshots.

    Args:
        length: relative to `step`, where the average ends.
        coefficients: of the snapshots; they sum to 1.
        error: of its profile, as `fit` returns it.
    """

    length: float
    step: int
    snapshots: list[Snapshot]
    coefficients: list[float]
    error: float

    @property
    def card(self) -> ModelCard:
        """Return the card of the sum."""
        return replace(self.snapshots[-1].card, ema_length=self.length)

    def weights(self) -> dict[str, Tensor]:
        """Return float32 sums, computed in float64, reading one tensor of one file at a time."""
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(s.file, framework="pt")) for s in self.snapshots]
            return {name: self._sum(files, name) for name in files[-1].keys()}  # noqa: SIM118

    def _sum(self, files: Sequence[safe_open], name: str) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        terms = zip(files, self.snapshots, self.coefficients, strict=True)
        for file, snapshot, coefficient in terms:
            # the file's header was read before: damage shows only here
            try:
                total = total + coefficient * file.get_tensor(name).double()
            except (SafetensorError, RuntimeError) as error:
                given = f"{snapshot.file} does not fit the others ({error})"
                do = f"remove {snapshot.file}"
                raise UserError(given, "snapshots of one network", do) from None
        return total.float()

    def __str__(self) -> str:
        lengths = ", ".join(f"{length:g}" for length in sorted({s.length for s in self.snapshots}))
        sources = f"{len(self.snapshots)} snapshots of lengths {lengths}"
        return f"length {self.length:g} at step {self.step:,}: {_percent(self.error)}, {sources}"


def file_name(length: float, step: int) -> str:
    """Return the name of a file with weights of an average."""
    return f"length-{length:g}-{checkpoint_name(step)}.safetensors"


def default_file(run: Path, mixture: Mixture) -> Path:
    """Return where a run's averages are written, so that samples of them belong to the run."""
    return run / f"ema-{file_name(mixture.length, mixture.step)}"


# -- snapshots -------------------------------------------------------------------------------------


def write_snapshot(
    run: Path, weights: dict[str, Tensor], card: ModelCard, length: float, step: int
) -> None:
    """Write a file of RUN/ema atomically, and list it."""
    file = run / FOLDER / file_name(length, step)
    require_usable(file, weights, f"continue with a lower --lr: `--resume {shell_quote(run)}`")
    try:
        with write_atomically(file) as beside:
            write_weights(beside, weights, replace(card, ema_length=length), step)
            sync_to_disk(beside)
        sync_to_disk(file.parent)
        # listed last: a kill in between leaves a complete file without a checksum
        files = {**recorded_snapshots(run), file.name: checksum_entry(file)}
        write_json(run / RECORD, {"files": files})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} could not be written ({error})",
            "a writable disk with free space",
            f"make room and continue with `--resume {shell_quote(run)}`",
        ) from error


def drop_after(run: Path, step: int) -> None:
    """Remove snapshots of later steps, averages computed from them, and incomplete files."""
    for file in [*_averages_in(run / FOLDER), *_averages_in(run, "ema-")]:
        if _step(file.name) > step:
            file.unlink()
    # a kill while a file is written leaves one with a hidden name
    for file in (run / FOLDER).glob(f".{ANY}.*"):
        file.unlink()
    if listed := recorded_snapshots(run):
        kept = {name: entry for name, entry in listed.items() if _step(name) <= step}
        write_json(run / RECORD, {"files": kept})


def recorded_snapshots(run: Path) -> dict[str, Listed]:
    """Return size and SHA-256 of snapshots by file name; early versions recorded none."""
    file = run / RECORD
    if not file.exists():
        return {}
    expected, do = "the list of snapshots that train.py wrote", f"remove {file}"
    files = read_json(file, Record, expected, do)["files"]
    for name in files:
        if not _is_average(name):
            raise UserError(f"{file} lists {name!r}", expected, do)
    return files


def snapshot_steps(run: Path) -> list[int]:
    """Return the step of every snapshot of a run, by its name."""
    return [_step(file.name) for file in _averages_in(run / FOLDER)]


def _averages_in(folder: Path, prefix: str = "") -> list[Path]:
    """Return files of averages; not a copy that a file manager named `… (copy)`."""
    return [file for file in folder.glob(prefix + ANY) if _is_average(file.name)]


def _is_average(name: str) -> bool:
    return re.search(r"-step-[0-9]+\.safetensors\Z", name) is not None


def _step(name: str) -> int:
    return int(name.removesuffix(".safetensors").rsplit("-", 1)[1])


def find_snapshots(run: Path) -> list[Snapshot]:
    """Return the snapshots of a run, the earliest first.

    Raises:
        UserError: there are none, or one is damaged or of another network.
    """
    all_files = [Snapshot(file, *read_header(file)) for file in _averages_in(run / FOLDER)]
    snapshots = [s for s in all_files if s.card.ema_length]
    snapshots.sort(key=lambda s: (s.step, s.length))
    if not snapshots:
        raise UserError(
            f"no snapshots of averages in {run / FOLDER}",
            "the directory of a run with --ema-lengths",
            "check the path, or train with --ema-lengths 0.05 0.1",
        )

    last = snapshots[-1]
    for snapshot in snapshots:
        if snapshot.card.network != last.card.network:
            model = snapshot.card.network.model
            raise UserError(
                f"{snapshot.file} is of {model}, {last.file.name} of another network",
                "snapshots of one run",
                "remove those of another run",
            )
    return snapshots


# -- averages --------------------------------------------------------------------------------------


def mixtures(run: Path, lengths: Sequence[float], step: int | None = None) -> list[Mixture]:
    """Return averages of these lengths as sums of a run's snapshots.

    Args:
        step: where they end; the last step with snapshots unless given.

    Raises:
        UserError: no snapshots there, or lengths that they fit badly.
    """
    snapshots = find_snapshots(run)
    end = _find_end(run, {snapshot.step for snapshot in snapshots}, step)
    used = [snapshot for snapshot in snapshots if snapshot.step <= end]
    coefficients, errors = _fit(used, end, lengths)
    for length, error in zip(lengths, errors, strict=True):
        if error > WORST:
            raise _bad_fit(run, used, end, length, error)
    return [
        Mixture(length, end, used, values.tolist(), float(error))
        for length, values, error in zip(lengths, coefficients.T, errors, strict=True)
    ]


def _fit(
    used: list[Snapshot], end: int, lengths: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return fit([s.step for s in used], [s.length for s in used], end, lengths)


def _bad_fit(run: Path, used: list[Snapshot], end: int, length: float, error: float) -> UserError:
    """Return the error for a length, with the range of lengths that fit well."""
    tried = np.array(
        [*np.geomspace(SHORTEST, 0.999 * PLAIN_MEAN_LENGTH, 100), *(s.length for s in used)]
    )
    # never empty: lengths that were tracked fit without error
    good = tried[_fit(used, end, tried)[1] <= WORST]
    return UserError(
        f"length {length:g} at step {end:,}, of {len(used)} snapshots in {run / FOLDER}: "
        f"{_percent(error)}",
        f"{100 * WORST:g}% at most, which lengths from {min(good):.3g} to {max(good):.3g} have",
        "pass one of those; in another training, a smaller --ema-every or other --ema-lengths "
        "allow others",
    )


def _find_end(run: Path, steps: set[int], asked: int | None) -> int:
    if asked is None:
        return max(steps)
    if asked not in steps:
        nearest = sorted(sorted(steps, key=lambda step: abs(step - asked))[:3])
        raise UserError(
            f"--step {asked} for {run}",
            f"a step with snapshots, such as {', '.join(map(str, nearest))}",
            "pass one of them, or drop --step to take the last",
        )
    return asked


def write_mixture(mixture: Mixture, file: Path) -> None:
    """Write an average atomically, as weights that `sample.py --run` takes."""
    with write_atomically(file) as beside:
        write_weights(beside, mixture.weights(), mixture.card, mixture.step)


def _percent(error: float) -> str:
    return f"error of the fit {100 * error:.2g}%"
