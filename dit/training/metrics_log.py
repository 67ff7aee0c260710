"""What training writes down: metrics.jsonl, and boards to watch it on."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from dit.distributed.ranks import Ranks
from dit.runs.checkpoints import Distance, is_distance
from dit.runs.metrics import BY_TIME, read_metrics
from dit.utils.files import flush, named, replacing

BUCKETS = [f"{BY_TIME}{low / 5:.1f}-{(low + 1) / 5:.1f}" for low in range(5)]
"""Names of the loss in fifths of the time between data (0) and pure noise (1)."""

Item = TypeVar("Item")


class Window:
    """Sums of what is logged, since the last line of the log.

    They stay on the device, so that no step waits for them, and go into checkpoints, so that a resumed run logs the
    same lines.

    Attributes:
        sums: of each name; the last entry counts steps. Those that were left out do not count.
        by_time: losses of images [0], and how many they are [1], in each of `BUCKETS`, as shares of a rank's images in
            a step, so that it does not matter how many ranks there were.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = names
        self.sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self.by_time = torch.zeros(2, len(BUCKETS), dtype=torch.float64, device=device)

    def add(self, values: Sequence[Tensor], left_out: Tensor) -> None:
        """One step's numbers, in the order of the names, unless it was left out (1 instead of 0)."""
        now = torch.stack([*(v.detach().double() for v in values), torch.ones_like(self.sums[-1])])
        self.sums += torch.where(left_out.bool(), 0, now)

    def add_losses(self, where: Tensor, losses: Tensor, left_out: Tensor) -> None:
        """The step's losses [B] of single images at times [B] on the CPU, as shares of the way from data to noise.

        A product with ones and zeros adds them up, because adding by index is in no fixed order on a GPU.
        """
        bucket = (where * len(BUCKETS)).long().clamp(max=len(BUCKETS) - 1)
        falls = (bucket[:, None] == torch.arange(len(BUCKETS))).double().to(losses.device, non_blocking=True)  # [B, K]
        now = torch.stack([losses.double(), torch.ones_like(losses, dtype=torch.float64)]) @ falls / len(losses)
        self.by_time += torch.where(left_out.bool(), 0, now)

    def share(self, ranks: Ranks) -> None:
        """Spread the sums evenly over ranks, whose checkpoint holds them once."""
        for sums in (self.sums, self.by_time):
            ranks.total(sums).div_(ranks.world)

    def close(self, ranks: Ranks) -> dict[str, float]:
        """Means over steps and ranks, and over the images of each bucket that has any; starts the next window."""
        (*sums, steps), (losses, counts) = (ranks.total(part.clone()).tolist() for part in (self.sums, self.by_time))
        self.sums.zero_()
        self.by_time.zero_()
        means = {name: value / steps for name, value in zip(self.names, sums, strict=True)} if steps else {}
        return {**means, **{name: loss / n for name, loss, n in zip(BUCKETS, losses, counts, strict=True) if n}}


@dataclass(frozen=True)
class Found:
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
        return next((Distance(*item, self.eval) for item in self.scores.items() if is_distance(item[0])), None)


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
        with replacing(self.file) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept))
            flush(beside)

    def write(self, step: int, values: dict[str, float], found: Found) -> None:
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
