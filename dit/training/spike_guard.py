"""Skips steps that would do harm: those with numbers that are not finite, or that spike."""

from typing import NamedTuple

import torch
from torch import Tensor

from dit.distributed.device import widest_float

DECAY = 0.99  # of the weight of earlier steps, in means and deviations
MIN_WEIGHT = 1 - DECAY**100  # a spike needs statistics of 100 steps
CHECK_EVERY = 10  # steps, at most, between two checks for skipped ones


class SkippedStep(NamedTuple):
    """A step that was skipped, with its numbers: not finite, or a spike."""

    step: int
    loss: float
    grad_norm: float


class SpikeGuard:
    """Decides by loss and gradient norm which steps to skip, on the device, so that none waits.

    Args:
        spike: standard deviations above the running mean that make a spike; 0: none is one.

    Attributes:
        moments: [3, 2], running sums of 1, x and x^2 of both numbers, over steps taken; float64
            where the device has it.
        streak: [1], of the same type, steps skipped in a row, until now.
        offset: int64 [1], batches of the data passed over by all rollbacks.
    """

    def __init__(self, spike: float, device: torch.device):
        self.spike = spike
        wide = widest_float(device)
        self.moments = torch.zeros(3, 2, dtype=wide, device=device)
        self.streak = torch.zeros(1, dtype=wide, device=device)
        self.offset = torch.zeros(1, dtype=torch.int64)
        # Rows of the last steps: number, whether skipped, loss, gradient norm.
        self._recent = torch.zeros(CHECK_EVERY, 4, dtype=wide, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of it."""
        return {"moments": self.moments, "streak": self.streak, "offset": self.offset}

    def update(self, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Return 1 to skip this step, else 0, float32 []; all ranks pass the same numbers."""
        now = torch.stack([loss.detach(), grad_norm.detach()]).to(self.moments)
        bad = ~now.isfinite().all() | self._is_spike(now)

        # `where` keeps the old sums: those with a NaN would never recover.
        powers = torch.stack([torch.ones_like(now), now, now.square()])
        updated = self.moments.lerp(powers, 1 - DECAY)
        self.moments.copy_(torch.where(bad, self.moments, updated))
        self.streak.copy_(torch.where(bad, self.streak + 1, 0))

        number = self.streak.new_full((), step)
        self._recent[step % CHECK_EVERY] = torch.cat([torch.stack([number, bad]), now])
        return bad.float()

    def _is_spike(self, now: Tensor) -> Tensor:
        weight, first, second = self.moments
        # Divided by their weight, sums that start at 0 are unbiased (1412.6980, section 3).
        mean = first / weight
        # Var x = E x^2 - (E x)^2, which rounding may leave below 0.
        variance = second / weight - mean.square()
        deviation = variance.clamp(min=0).sqrt()
        above = (now > mean + self.spike * deviation) & (weight > MIN_WEIGHT)
        return above.any() & (self.spike > 0)

    def take_skipped(self) -> list[SkippedStep]:
        """Return the steps skipped since the last call, in order; waits for the device."""
        rows = sorted(row for row in self._recent.tolist() if row[1])
        self._recent.zero_()
        return [SkippedStep(int(step), loss, norm) for step, _, loss, norm in rows]
