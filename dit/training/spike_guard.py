"""Steps that would do harm are left out: those with numbers that are not finite, or that leap."""

from typing import NamedTuple

import torch
from torch import Tensor

MEMORY = 0.99  # what a step leaves of the weight of those before it, in means and deviations
ENOUGH = 1 - MEMORY**100  # weight from which on a leap is called one: that of 100 steps
LOOK = 10  # at least every so many steps the loop asks what was left out


class SkippedStep(NamedTuple):
    """A step that was left out, and why."""

    step: int
    loss: float
    grad_norm: float

    @property
    def finite(self) -> bool:
        """Whether its numbers were: then it was a leap."""
        return abs(self.loss) < float("inf") and abs(self.grad_norm) < float("inf")


class SpikeGuard:
    """Judges each step by its loss and the norm of its gradient, on the device, so that nothing waits for the verdict.

    Args:
        spike: standard deviations above the running mean from which on a number leaps; 0: none does.

    Attributes:
        moments: float64 [3, 2], running sums of 1, x and x^2 for both numbers, of the steps that were taken.
        streak: float64 [1], steps left out in a row, until now.
        offset: int64 [1], batches that were passed over in all, by going back to a checkpoint.
    """

    def __init__(self, spike: float, device: torch.device):
        self.spike = spike
        self.moments = torch.zeros(3, 2, dtype=torch.float64, device=device)
        self.streak = torch.zeros(1, dtype=torch.float64, device=device)
        self.offset = torch.zeros(1, dtype=torch.int64)
        self._recent = torch.zeros(
            LOOK, 4, dtype=torch.float64, device=device
        )  # step, left out, loss, norm

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"moments": self.moments, "streak": self.streak, "offset": self.offset}

    def judge(self, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1 where this step is to be left out, else 0, float32 []; the numbers are the same on all ranks."""
        now = torch.stack([loss.detach(), grad_norm.detach()]).double()
        bad = ~now.isfinite().all() | self._leaps(now)
        seen = torch.stack([torch.ones_like(now), now, now.square()])
        self.moments.copy_(torch.where(bad, self.moments, self.moments.lerp(seen, 1 - MEMORY)))
        self.streak.copy_(torch.where(bad, self.streak + 1, 0))
        self._recent[step % LOOK] = torch.cat(
            [torch.stack([bad.new_full((), step, dtype=torch.float64), bad]), now]
        )
        return bad.float()

    def _leaps(self, now: Tensor) -> Tensor:
        weight, first, second = self.moments
        mean = first / weight
        deviation = (second / weight - mean.square()).clamp(min=0).sqrt()
        return ((now > mean + self.spike * deviation) & (weight > ENOUGH)).any() & (self.spike > 0)

    def left_out(self) -> list[SkippedStep]:
        """Steps left out since the last call, in order; waits for the device."""
        found = sorted(row for row in self._recent.tolist() if row[1])
        self._recent.zero_()
        return [SkippedStep(int(step), loss, norm) for step, _, loss, norm in found]
