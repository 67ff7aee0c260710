"""Means of what is logged, kept on the device between two lines of the log."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit.distributed.ranks import Ranks
from dit.runs.metrics import BY_TIME

BUCKETS = [f"{BY_TIME}{low / 5:.1f}-{(low + 1) / 5:.1f}" for low in range(5)]
"""Names of the loss in fifths of the time between data (0) and pure noise (1)."""


class RunningMeans:
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
        falls = (
            (bucket[:, None] == torch.arange(len(BUCKETS)))
            .double()
            .to(losses.device, non_blocking=True)
        )  # [B, K]
        now = (
            torch.stack([losses.double(), torch.ones_like(losses, dtype=torch.float64)])
            @ falls
            / len(losses)
        )
        self.by_time += torch.where(left_out.bool(), 0, now)

    def share(self, ranks: Ranks) -> None:
        """Spread the sums evenly over ranks, whose checkpoint holds them once."""
        for sums in (self.sums, self.by_time):
            ranks.total(sums).div_(ranks.world)

    def close(self, ranks: Ranks) -> dict[str, float]:
        """Means over steps and ranks, and over the images of each bucket that has any; starts the next window."""
        (*sums, steps), (losses, counts) = (
            ranks.total(part.clone()).tolist() for part in (self.sums, self.by_time)
        )
        self.sums.zero_()
        self.by_time.zero_()
        means = (
            {name: value / steps for name, value in zip(self.names, sums, strict=True)}
            if steps
            else {}
        )
        return {
            **means,
            **{name: loss / n for name, loss, n in zip(BUCKETS, losses, counts, strict=True) if n},
        }
