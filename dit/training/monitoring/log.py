"""The log of training, metrics.jsonl, and the trackers that show it."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from dit.runs.checkpoint_files import Distance, is_distance
from dit.runs.logs import read_metrics
from dit.utils.files import name_file_in_errors, write_atomically
from dit.utils.system import sync_to_disk

Item = TypeVar("Item")

GROUPS = {
    **dict.fromkeys(("lr", "grad_norm", "update_ratio"), "optim"),
    **dict.fromkeys(("img_per_s", "mfu", "data_wait", "memory_gib"), "speed"),
}
"""Groups of tags; other numbers are in `train`, scores in `eval`."""


@dataclass(frozen=True)
class EvalResult:
    """Scores of the EMA at one step; empty where it was not measured.

    Args:
        scores: by name.
        eval: equal for two results that were measured in the same way.
        is_best: whether the distance is the lowest so far.
    """

    scores: dict[str, float] = field(default_factory=dict)
    eval: str = ""
    is_best: bool = False

    @property
    def distance(self) -> Distance | None:
        """Return the Fréchet distance, by which the best step is chosen."""
        for name, value in self.scores.items():
            if is_distance(name):
                return Distance(name, value, self.eval)
        return None


class Tracker(Protocol):
    """A service or program that shows the log: numbers by `tag`, and sample grids (PIL images)."""

    def write(self, step: int, numbers: dict[str, float]) -> None: ...

    def image(self, step: int, picture: Any) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """metrics.jsonl, one line per logged step.

    Args:
        start: lines after this step are dropped: the run does these steps again.
        trackers: which show the same numbers.
    """

    def __init__(self, run: Path, start: int, trackers: Sequence[Tracker] = ()):
        self.file = run / "metrics.jsonl"
        self.trackers = trackers
        kept = [line for line in read_metrics(self.file) if line["step"] <= start]
        # a kill in the middle of this must not lose the log
        with write_atomically(self.file) as beside:
            text = "".join(json.dumps(line) + "\n" for line in kept)
            beside.write_text(text, encoding="utf-8")
            sync_to_disk(beside)

    def write(self, step: int, values: dict[str, float], result: EvalResult) -> None:
        """Log the numbers of one step."""
        scores = {**result.scores, "eval": result.eval} if result.scores else {}
        self._append({"step": step, **values, **scores})
        numbers = {tag(name): value for name, value in values.items()}
        numbers |= {score_tag(name): score for name, score in result.scores.items()}
        for tracker in self.trackers:
            tracker.write(step, numbers)

    def event(self, step: int, entries: dict[str, Any]) -> None:
        self._append({"step": step, **entries})

    def _append(self, line: dict[str, Any]) -> None:
        # opened for each line: a kill loses at most the line that is being written
        with name_file_in_errors(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def image(self, step: int, picture: Any) -> None:
        for tracker in self.trackers:
            tracker.image(step, picture)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


def tag(name: str) -> str:
    """Return the tag of a number: its group and its name."""
    return f"{GROUPS.get(name, 'train')}/{name}"


def score_tag(name: str) -> str:
    """Return the tag of a score, such as eval/FD[digits-cnn]: TensorBoard puts runs in round
    brackets."""
    return f"eval/{name}".replace("(", "[").replace(")", "]")


class Lap(NamedTuple):
    """Speed between two readings of a stopwatch."""

    steps_per_second: float
    waiting: float  # share of the time spent waiting for the next batch


class Stopwatch:
    """Speed of training since the last reading, without previews, scores and checkpoints."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.steps = 0
        self.waited = 0.0

    def lap(self, steps: int) -> Lap:
        """Return the speed up to step number `steps` since this start, and begin the next lap."""
        now = time.monotonic()
        seconds = now - self.since
        lap = Lap((steps - self.steps) / seconds, self.waited / seconds)
        self.since = now
        self.steps = steps
        self.waited = 0.0
        return lap

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the same items; the time until each is ready counts as waiting."""
        source = iter(items)
        while True:
            begin = time.monotonic()
            # not `for`: the time that next() takes is what is measured
            try:
                item = next(source)
            except StopIteration:
                return
            self.waited += time.monotonic() - begin
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block."""
        begin = time.monotonic()
        yield
        self.since += time.monotonic() - begin
