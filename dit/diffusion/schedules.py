"""Noise schedules of DDPMs, and the spacing of sampling times."""

import math

import torch
from torch import Tensor

# Smallest alpha from which sampling starts. The last alphas of the cosine schedule are so small
# (5e-5) that x0 from a predicted eps is off by 20,000 times the error of eps. Papers clip x0 there,
# which latents do not allow. So cosine sampling starts at t = 980, where alpha is 0.03 and noised
# data can hardly be distinguished from pure noise.
LEAST_SIGNAL = {"linear": 0.0, "cosine": 0.03}


def linear_betas(steps: int) -> Tensor:
    """Return betas [steps] from 1e-4 to 0.02 (2006.11239, section 4).

    They are scaled so that fewer than 1000 steps end in the same noise.
    """
    return torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)


def cosine_betas(steps: int) -> Tensor:
    """Return betas [steps], clipped at 0.999 (2102.09672, equation 17)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    # up to a factor, which cancels in the betas
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def spaced(start: float, points: int, spacing: str) -> Tensor:
    """Return float64 points [points] from `start` down to 0, `uniform` or `cosine`.

    Cosine spacing is denser at both ends: quantiles of Beta(1/2, 1/2) (after 2407.12173).
    """
    if spacing == "uniform":
        return torch.linspace(start, 0, points, dtype=torch.float64)
    # sin^2 of evenly spaced angles
    return start * torch.linspace(math.pi / 2, 0, points, dtype=torch.float64).sin() ** 2
