"""Means of what is logged, kept on the device between two lines of the log."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit.distributed.device import widest_float
from dit.distributed.ranks import Ranks
from dit.runs.logs import BY_TIME

BUCKETS = [f"{BY_TIME}{low / 5:.1f}-{(low + 1) / 5:.1f}" for low in range(5)]
"""Names of the loss in fifths of the time between data (0) and pure noise (1)."""


class RunningMeans:
    """Sums of what is logged, since the last line of the log.

    They stay on the device, so that no step waits for them, and go into checkpoints, so that a
    resumed run logs the same lines. Skipped steps do not count.

    Args:
        t_end: the time of pure noise.

    Attributes:
        sums: of each name; the last entry counts steps.
        by_time: losses of images [0], and their number [1], in each of `BUCKETS`; as shares of a
            rank's images in a step, so that the number of ranks does not matter.
    """

    def __init__(self, names: Sequence[str], device: torch.device, t_end: float):
        self.names = names
        self.t_end = t_end
        wide = widest_float(device)
        self.sums = torch.zeros(len(names) + 1, dtype=wide, device=device)
        self.by_time = torch.zeros(2, len(BUCKETS), dtype=wide, device=device)

    def add(self, values: Sequence[Tensor], skipped: Tensor) -> None:
        """Add one step's numbers, in the order of the names, unless `skipped` is 1."""
        counted = [value.detach().to(self.sums) for value in values]
        counted.append(torch.ones_like(self.sums[-1]))
        taken = ~skipped.bool()
        self.sums += torch.where(taken, torch.stack(counted), 0)

    def add_losses(self, t: Tensor, losses: Tensor, skipped: Tensor) -> None:
        """Add a step's losses [B] of single images at times [B], which are on the CPU."""
        count = len(BUCKETS)
        bucket = (t / self.t_end * count).long()
        bucket = bucket.clamp(max=count - 1)
        one_hot = bucket[:, None] == torch.arange(count)  # [B, buckets]
        one_hot = one_hot.to(self.by_time.dtype).to(losses.device, non_blocking=True)

        # A product, because adding by index is in no fixed order on a GPU.
        losses = losses.to(self.by_time)
        rows = torch.stack([losses, torch.ones_like(losses)])
        shares = rows @ one_hot / len(losses)
        self.by_time += torch.where(skipped.bool(), 0, shares)

    def average_over_ranks(self, ranks: Ranks) -> None:
        """Give all ranks the same sums, since a checkpoint holds them once."""
        for sums in (self.sums, self.by_time):
            ranks.sum(sums).div_(ranks.world)

    def compute_and_reset(self, ranks: Ranks) -> dict[str, float]:
        """Return means over steps and ranks, and over the images of each bucket that has any."""
        # Copies, since the sums stay on the device, where the next step adds to them.
        *sums, steps = ranks.sum(self.sums.clone()).tolist()
        losses, counts = ranks.sum(self.by_time.clone()).tolist()
        self.sums.zero_()
        self.by_time.zero_()

        # Without a step that counts, as between two skipped ones, there is no mean.
        means = {}
        if steps:
            averages = (value / steps for value in sums)
            means = dict(zip(self.names, averages, strict=True))
        for name, loss, count in zip(BUCKETS, losses, counts, strict=True):
            if count:
                means[name] = loss / count
        return means
