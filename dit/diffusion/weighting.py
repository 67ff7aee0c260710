"""Weights of losses, by signal-to-noise ratio, and importance sampling of training times."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dit.diffusion.process import Process

LEAST_TIME = 0.05  # of the velocity's error, which has no bound at 0
LEAST_LENGTH = 0.01  # of a velocity, whose direction has no bounded gradient at 0
MEMORY = 10  # losses kept of each time
UNIFORM = 0.001  # share of draws from all times alike, as in the release of 2102.09672


def min_snr(process: Process, objective: str, t: Tensor, gamma: float) -> Tensor:
    """Return weights [B] that make any objective an x0 loss weighted by min(SNR, gamma).

    2303.09556, equation 9.
    """
    at = process.coefficients(t)
    snr = (at.alpha / at.sigma) ** 2
    # how the error of x0 follows from that of eps, x0 or v
    x0_per_out = {"eps": at.sigma / at.alpha, "x0": torch.ones_like(snr), "v": at.sigma}[objective]
    return snr.clamp(max=gamma) * x0_per_out**2


def velocity_weight(objective: str, t: Tensor) -> Tensor:
    """Return weights [B] that make a loss on x0 or v of a flow one on v (2511.13720, eq. 6).

    The error of v is that of x0 over t; times below 0.05 count as 0.05.
    """
    assert objective in ("x0", "v"), objective
    return t.clamp(min=LEAST_TIME) ** -2 if objective == "x0" else torch.ones_like(t)


def turned_velocity(predicted: Tensor, v: Tensor) -> Tensor:
    """Return 1 - cos of velocities [B, C, H, W] over channels, mean over places [B] (2410.10356).

    Lengths below 0.01 count as 0.01. A fresh network predicts 0, where the gradient would be 1e8.
    """
    cosines = cosine_similarity(predicted, v, dim=1, eps=LEAST_LENGTH)
    return (1 - cosines).flatten(1).mean(1)


class LossAwareSampler:
    """Draws times with p(t) proportional to sqrt(E[L_t^2]) (2102.09672, equation 18).

    This calms the gradient of the variational bound. Times are uniform until each has `MEMORY`
    losses. All is on the CPU, and the same on every rank.

    Attributes:
        history: float64 [T, MEMORY], the last losses of times 1 … T, as ring buffers.
        counts: int64 [T], number of losses seen of each time.
    """

    def __init__(self, steps: int):
        self.history = torch.zeros(steps, MEMORY, dtype=torch.float64)
        self.counts = torch.zeros(steps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """Return the probabilities of times 1 … T, float64 [T]."""
        steps = len(self.counts)
        uniform = torch.full((steps,), 1 / steps, dtype=torch.float64)
        size = self.history.square().mean(1).sqrt()
        if self.counts.min() < MEMORY or size.sum() == 0:
            return uniform
        # the uniform share bounds the weights by 1 / UNIFORM
        return (1 - UNIFORM) * size / size.sum() + UNIFORM * uniform

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return times [n] and weights 1 / (T p(t)) [n], which keep the mean of uniform times."""
        p = self.probabilities()
        index = torch.multinomial(p, n, replacement=True, generator=generator)
        return (index + 1).double(), 1 / (len(p) * p[index])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Store the finite ones of unweighted losses [B] at times [B]."""
        for index, loss in zip((t.long() - 1).tolist(), losses.tolist(), strict=True):
            if abs(loss) < float("inf"):
                self.history[index, self.counts[index] % MEMORY] = loss
                self.counts[index] += 1
