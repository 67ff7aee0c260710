"""What training writes down: metrics.jsonl and TensorBoard."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.files import flush, replacing
from dit.hardware import Ranks
from dit.runs import Distance, is_distance, read_metrics


class Window:
    """Sums of what is logged, since the last line of the log.

    They stay on the device, so that no step waits for them, and go into checkpoints, so that a resumed run logs the
    same lines. The last entry counts the steps; those that were left out do not count.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = names
        self.sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)

    def add(self, values: Sequence[Tensor], left_out: Tensor) -> None:
        """One step's numbers, in the order of the names, unless it was left out (1 instead of 0)."""
        now = torch.stack([*(v.detach().double() for v in values), torch.ones_like(self.sums[-1])])
        self.sums += torch.where(left_out.bool(), 0, now)

    def share(self, ranks: Ranks) -> None:
        """Spread the sums evenly over ranks, whose checkpoint holds them once."""
        ranks.total(self.sums).div_(ranks.world)

    def close(self, ranks: Ranks) -> dict[str, float]:
        """Means over steps and ranks, if any was taken; starts the next window."""
        *sums, steps = ranks.total(self.sums.clone()).tolist()
        self.sums.zero_()
        return {name: value / steps for name, value in zip(self.names, sums, strict=True)} if steps else {}


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


class MetricsLog:
    """Appends a line per logged step; lines after `start`, of steps that a resumed run does again, are dropped."""

    def __init__(self, run: Path, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.file = run / "metrics.jsonl"
        kept = [line for line in read_metrics(self.file) if line["step"] <= start]
        with replacing(self.file) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept))
            flush(beside)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float], found: Found) -> None:
        """One step's numbers; scores are under eval/ in TensorBoard."""
        scored = {**found.scores, "eval": found.eval} if found.scores else {}
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values, **scored}) + "\n")
        for name, value in {**values, **{f"eval/{name}": score for name, score in found.scores.items()}}.items():
            self.board.add_scalar(name, value, step)

    def event(self, step: int, what: dict[str, Any]) -> None:
        """A line of its own for something that happened."""
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **what}) + "\n")

    def image(self, step: int, picture: Any) -> None:
        """A sample grid (a PIL image) for TensorBoard."""
        import numpy as np

        self.board.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Flush TensorBoard."""
        self.board.close()


class Stopwatch:
    """Speed of training since it was last asked for, pictures, scores and checkpoints not counted."""

    def __init__(self) -> None:
        self.since, self.steps = time.monotonic(), 0

    def steps_per_second(self, steps: int) -> float:
        """Speed up to step number `steps` of this start."""
        now = time.monotonic()
        speed = (steps - self.steps) / (now - self.since)
        self.since, self.steps = now, steps
        return speed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        begin = time.monotonic()
        yield
        self.since += time.monotonic() - begin
