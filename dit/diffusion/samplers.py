"""Samplers: noise to data along `times`, as their papers print them.

All take `(denoise, process, x, y, times, noise)`: x [B, C, H, W] is noise at times[0], y [B] class ids, times
[steps + 1] descend to 0, and each call of `noise()` gives the next standard normal draw [B, C, H, W].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dit.diffusion.process import (
    Denoise,
    Posterior,
    Process,
    add_noise,
    like,
    posterior,
    target,
    to_x0_eps,
)

Noise = Callable[[], Tensor]
Sampler = Callable[[Denoise, Process, Tensor, Tensor, Tensor, Noise], Tensor]


def ddpm(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    y: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    variance: str = "small",
) -> Tensor:
    """Ancestral sampling (2006.11239, algorithm 2); `variance` is small, large or learned (2102.09672, equation 15)."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        said = denoise(x, t, y)
        step = posterior(process, x, said.x0, t, s)
        x = (
            step.mean
            if s == 0
            else step.mean + deviation(step, variance, said.var_fraction) * noise()
        )
    return x


def deviation(step: Posterior, variance: str, fraction: Tensor | None) -> Tensor:
    """Standard deviation of an ancestral step; a learned one lies between the two fixed ones on a log scale."""
    if variance == "learned":
        assert fraction is not None, "the network has no variance"
        return torch.exp(
            0.5 * (fraction * step.var_max.log() + (1 - fraction) * step.var_min.log())
        )
    return (step.var_min if variance == "small" else step.var_max).sqrt()


def ddim(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    y: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (2010.02502, equations 12 and 16): eta 0 is deterministic, 1 ancestral."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        said = denoise(x, t, y)
        at = process.coefficients(s)
        whole = like(at.sigma**2, x)  # variance of the noise at s, and what of it is drawn afresh
        var = eta**2 * posterior(process, x, said.x0, t, s).var_min if eta > 0 else 0 * whole
        x = like(at.alpha, x) * said.x0 + (whole - var).clamp(min=0).sqrt() * said.eps
        if eta > 0 and s > 0:
            x = x + var.sqrt() * noise()
    return x


def euler(
    denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
) -> Tensor:
    """First-order steps of the probability-flow ODE; for flow matching x + (s - t) v, for DDPM the same as DDIM."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        said = denoise(x, t, y)
        x = add_noise(process, said.x0, said.eps, s)
    return x


def heun(
    denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
) -> Tensor:
    """Second order by the trapezoid rule (2206.00364, algorithm 1): two network calls a step, one in the last.

    The slope that is averaged is the process's own: v for flow matching, eps for DDPM.
    """
    for t, s in zip(times[:-1], times[1:], strict=True):
        said = denoise(x, t, y)
        x_s = add_noise(process, said.x0, said.eps, s)
        if s > 0:
            again = denoise(x_s, s, y)
            slopes = [
                target(process, process.slope, p.x0, p.eps, time)
                for p, time in ((said, t), (again, s))
            ]
            x_s = add_noise(
                process, *to_x0_eps(process, process.slope, torch.stack(slopes).mean(0), x, t), s
            )
        x = x_s
    return x


def dpmpp_2m(
    denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
) -> Tensor:
    """DPM-Solver++(2M) (2211.01095, algorithm 2): second order in log(alpha / sigma) from two predictions of x0."""
    alpha, sigma = process.coefficients(times)[:2]
    h = (alpha.log() - sigma.log()).diff()  # infinite in a last step to t = 0 and in a flow's first
    previous = None
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x0 = denoise(x, t, y).x0
        d = x0
        if previous is not None and s > 0:
            r = h[i - 1] / h[i]
            d = x0 + like(1 / (2 * r), x) * (x0 - previous)
        x = like(sigma[i + 1] / sigma[i], x) * x - like(alpha[i + 1] * torch.expm1(-h[i]), x) * d
        previous = x0
    return x
