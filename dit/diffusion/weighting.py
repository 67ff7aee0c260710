"""Training times drawn where the loss is large, to calm the gradient of the variational bound (2102.09672)."""

import torch
from torch import Tensor

from dit.diffusion.process import Process

MEMORY = 10  # losses remembered of each time
UNIFORM = 0.001  # share of draws that do not look at the loss, as in the paper's release


class LossAwareSampler:
    """p(t) proportional to sqrt(E[L_t^2]) over the last losses of each time (2102.09672, equation 18).

    Uniform until every time has `MEMORY` losses. As in the release, one draw in a thousand stays uniform, so that no
    time is forgotten and no weight is larger than 1000. All is on the CPU, and the same on every rank.

    Attributes:
        history: float64 [T, MEMORY], the last losses of times 1 … T, the oldest overwritten first.
        counts: int64 [T], losses seen of each.
    """

    def __init__(self, steps: int):
        self.history = torch.zeros(steps, MEMORY, dtype=torch.float64)
        self.counts = torch.zeros(steps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """Of drawing times 1 … T: float64 [T]."""
        steps = len(self.counts)
        uniform = torch.full((steps,), 1 / steps, dtype=torch.float64)
        size = self.history.square().mean(1).sqrt()
        if self.counts.min() < MEMORY or size.sum() == 0:
            return uniform
        return (1 - UNIFORM) * size / size.sum() + UNIFORM * uniform

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times [n] and the weights of their losses, 1 / (T p(t)), with which the mean stays that of uniform times."""
        p = self.probabilities()
        index = torch.multinomial(p, n, replacement=True, generator=generator)
        return (index + 1).double(), 1 / (len(p) * p[index])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remember the unweighted losses [B] at times [B]; none that is not finite."""
        for index, loss in zip((t.long() - 1).tolist(), losses.tolist(), strict=True):
            if abs(loss) < float("inf"):
                self.history[index, self.counts[index] % MEMORY] = loss
                self.counts[index] += 1


def min_snr(process: Process, objective: str, t: Tensor, gamma: float) -> Tensor:
    """Weights [B] that make every objective an x0 loss weighted by min(SNR, gamma) (2303.09556, equation 9)."""
    at = process.coefficients(t)
    snr = (at.alpha / at.sigma) ** 2
    x0_per_out = {"eps": at.sigma / at.alpha, "x0": torch.ones_like(snr), "v": at.sigma}[objective]
    return snr.clamp(max=gamma) * x0_per_out**2
