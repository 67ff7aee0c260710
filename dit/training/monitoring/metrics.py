"""What training writes down: metrics.jsonl, and boards to watch it on."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from dit.runs.checkpoints import Distance, is_distance
from dit.runs.metrics import read_metrics
from dit.utils.files import flush, named, write_atomically

Item = TypeVar("Item")


@dataclass(frozen=True)
class EvalResult:
    """What the EMA scored at one step; nothing where it was not measured.

    Args:
        scores: by name.
        eval: the same where two were measured in the same way.
        leads: whether the distance is the lowest so far.
    """

    scores: dict[str, float] = field(default_factory=dict)
    eval: str = ""
    leads: bool = False

    @property
    def distance(self) -> Distance | None:
        """The score that tells which step is best."""
        return next(
            (Distance(*item, self.eval) for item in self.scores.items() if is_distance(item[0])),
            None,
        )


class Board(Protocol):
    """Where the log can be watched."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers by `tag`."""

    def image(self, step: int, picture: Any) -> None:
        """A sample grid, a PIL image."""

    def close(self) -> None:
        """Bring all of it there."""


class MetricsLog:
    """Appends a line per logged step; lines after `start`, of steps that a resumed run does again, are dropped.

    Args:
        boards: to show the same numbers on.
    """

    def __init__(self, run: Path, start: int, boards: Sequence[Board] = ()):
        self.file, self.boards = run / "metrics.jsonl", boards
        kept = [line for line in read_metrics(self.file) if line["step"] <= start]
        with write_atomically(self.file) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept))
            flush(beside)

    def write(self, step: int, values: dict[str, float], found: EvalResult) -> None:
        """One step's numbers."""
        scored = {**found.scores, "eval": found.eval} if found.scores else {}
        self._append({"step": step, **values, **scored})
        numbers = {tag(name): value for name, value in values.items()}
        scores = {score_tag(name): score for name, score in found.scores.items()}
        for board in self.boards:
            board.write(step, {**numbers, **scores})

    def event(self, step: int, what: dict[str, Any]) -> None:
        """A line of its own for something that happened."""
        self._append({"step": step, **what})

    def _append(self, line: dict[str, Any]) -> None:
        with named(self.file), self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def image(self, step: int, picture: Any) -> None:
        """A sample grid, a PIL image."""
        for board in self.boards:
            board.image(step, picture)

    def close(self) -> None:
        """Nothing more will come."""
        for board in self.boards:
            board.close()


def tag(name: str) -> str:
    """What a number of the log is called on a board, where tags are in groups."""
    return f"{GROUPS.get(name, 'train')}/{name}"


def score_tag(name: str) -> str:
    """What a score is called on a board: eval/FD[digits-cnn], for round brackets are TensorBoard's own around a run."""
    return f"eval/{name}".replace("(", "[").replace(")", "]")


GROUPS = {
    **dict.fromkeys(("lr", "grad_norm", "update_ratio"), "optim"),
    **dict.fromkeys(("img_per_s", "mfu", "data_wait", "memory_gib"), "speed"),
}
"""Of what is not the loss or a part of it; scores are in `eval`."""


class Lap(NamedTuple):
    """How training went between two looks at the watch."""

    steps_per_second: float
    waiting: float  # share of the time in which the loop waited for its next batch


class Stopwatch:
    """Speed of training since it was last asked for, pictures, scores and checkpoints not counted."""

    def __init__(self) -> None:
        self.since, self.steps, self.waited = time.monotonic(), 0, 0.0

    def lap(self, steps: int) -> Lap:
        """Up to step number `steps` of this start."""
        now = time.monotonic()
        seconds = now - self.since
        lap = Lap((steps - self.steps) / seconds, self.waited / seconds)
        self.since, self.steps, self.waited = now, steps, 0.0
        return lap

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each is there counts as waiting."""
        source = iter(items)
        while True:
            begin = time.monotonic()
            try:
                item = next(source)
            except StopIteration:
                return
            self.waited += time.monotonic() - begin
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        begin = time.monotonic()
        yield
        self.since += time.monotonic() - begin
