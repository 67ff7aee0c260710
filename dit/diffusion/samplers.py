"""Samplers: from noise to data along `times`, each the algorithm of its paper.

All take (denoise, process, x, y, times, noise): x [B, C, H, W] is noise at times[0]; y [B] are
class ids; times [steps + 1] descend to 0; `noise()` returns the next standard normal like x.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dit.diffusion.process import Denoise, Process, add_noise, like, posterior, target, to_x0_eps

Noise = Callable[[], Tensor]
Sampler = Callable[[Denoise, Process, Tensor, Tensor, Tensor, Noise], Tensor]


def ddpm(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    y: Tensor,
    times: Tensor,
    noise: Noise,
    variance: str = "small",
) -> Tensor:
    """Ancestral sampling (2006.11239, algorithm 2); `variance` is small, large or learned."""
    for t, s in pairwise(times):
        prediction = denoise(x, t, y)
        step = posterior(process, x, prediction.x0, t, s)
        x = step.mean
        if s > 0:  # no noise in the last step
            std = step_std(step.var_min, step.var_max, variance, prediction.var_fraction)
            x = x + std * noise()
    return x


def step_std(var_min: Tensor, var_max: Tensor, variance: str, fraction: Tensor | None) -> Tensor:
    if variance != "learned":
        return (var_min if variance == "small" else var_max).sqrt()
    assert fraction is not None, "the network has no variance"
    # between the fixed ones, on a log scale (2102.09672, equation 15)
    return torch.exp(0.5 * (fraction * var_max.log() + (1 - fraction) * var_min.log()))


def ddim(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    y: Tensor,
    times: Tensor,
    noise: Noise,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (2010.02502): eta 0 is deterministic, 1 ancestral."""
    for t, s in pairwise(times):
        prediction = denoise(x, t, y)
        at_s = process.coefficients(s)
        variance = eta**2 * posterior(process, x, prediction.x0, t, s).var_min  # equation 16
        # equation 12: predicted x0, the direction to x_t, fresh noise
        direction = (like(at_s.sigma**2, x) - variance).clamp(min=0).sqrt() * prediction.eps
        x = like(at_s.alpha, x) * prediction.x0 + direction
        if eta > 0 and s > 0:
            x = x + variance.sqrt() * noise()
    return x


def euler(
    denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
) -> Tensor:
    """First-order steps of the probability-flow ODE: x + (s - t) v for a flow, DDIM for a DDPM."""
    for t, s in pairwise(times):
        prediction = denoise(x, t, y)
        x = add_noise(process, prediction.x0, prediction.eps, s)
    return x


def heun(
    denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
) -> Tensor:
    """Second-order steps by the trapezoid rule (2206.00364, algorithm 1), of v or eps."""
    for t, s in pairwise(times):
        at_t = denoise(x, t, y)
        x_s = add_noise(process, at_t.x0, at_t.eps, s)
        if s > 0:  # the last step stays Euler's
            at_s = denoise(x_s, s, y)
            slope_t = target(process, process.slope, at_t.x0, at_t.eps, t)
            slope_s = target(process, process.slope, at_s.x0, at_s.eps, s)
            x0, eps = to_x0_eps(process, process.slope, (slope_t + slope_s) / 2, x, t)
            x_s = add_noise(process, x0, eps, s)
        x = x_s
    return x


def dpmpp_2m(
    denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
) -> Tensor:
    """DPM-Solver++(2M) (2211.01095, algorithm 2): second order from two predictions of x0.

    Unlike there, the last step is of first order. So is the second from pure noise, as r is
    infinite.
    """
    alpha, sigma = process.coefficients(times)[:2]
    h = (alpha.log() - sigma.log()).diff()  # infinite in steps from pure noise and to data
    previous = None
    for i, (t, s) in enumerate(pairwise(times)):
        d = x0 = denoise(x, t, y).x0
        if previous is not None and s > 0:
            r = h[i - 1] / h[i]
            d = x0 + like(1 / (2 * r), x) * (x0 - previous)
        x = like(sigma[i + 1] / sigma[i], x) * x - like(alpha[i + 1] * torch.expm1(-h[i]), x) * d
        previous = x0
    return x
