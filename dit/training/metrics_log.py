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
    same lines. The last two entries count steps and hold the first step whose numbers were not finite.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = names
        self.sums = torch.zeros(len(names) + 2, dtype=torch.float64, device=device)

    def add(self, step: int, values: Sequence[Tensor]) -> None:
        """One step's numbers, in the order of the names."""
        now = torch.stack([v.detach().double() for v in values])
        first_bad = torch.where((self.sums[-1] == 0) & ~now.isfinite().all(), step, self.sums[-1])
        self.sums[:-2] += now
        self.sums[-2] += 1
        self.sums[-1] = first_bad

    def first_bad_step(self, ranks: Ranks) -> int:
        """The last over ranks of their first steps with a number that is not finite; 0 if there was none."""
        return int(ranks.maximum(self.sums[-1].clone()))

    def share(self, ranks: Ranks) -> None:
        """Spread the sums evenly over ranks, whose checkpoint holds them once."""
        ranks.total(self.sums[:-1]).div_(ranks.world)

    def close(self, ranks: Ranks) -> dict[str, float]:
        """Means over steps and ranks; starts the next window."""
        sums = ranks.total(self.sums.clone()).tolist()
        self.sums.zero_()
        return {name: value / sums[-2] for name, value in zip(self.names, sums[:-2], strict=True)}


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
