"""The density of data under the probability-flow ODE."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dit.diffusion.likelihood import Tick
from dit.diffusion.process import DDPM, Denoise, Process, target


def ode_log_density(
    denoise: Denoise,
    process: Process,
    x0: Tensor,
    y: Tensor,
    times: Tensor,
    probes: Iterable[Tensor],
    tick: Tick = lambda images: None,
) -> Tensor:
    """Return log p(x0) in nats, float64 [B] (2011.13456, equation 39; 2210.02747, appendix C).

    log p(x0) = log N(x_end) + the integral of div v da, along dx/da = v with a = `process.arc`.

    Args:
        denoise: network and process; gradients go through it.
        process: any.
        x0: images [B, C, H, W], dequantised.
        y: class ids [B].
        times: [steps + 1], ascending from 0, as `ode_times` returns.
        probes: each [B, C, H, W], the same in each iteration over them; see `divergence`.
        tick: called after each step.
    """
    x = x0
    integral = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    widths = process.arc(times).diff().tolist()

    # Heun's steps, of x and of the integral alike
    for (t, s), width in zip(pairwise(times), widths, strict=True):
        v_t, div_t = velocity(denoise, process, x, t, y, probes)
        v_s, div_s = velocity(denoise, process, x + width * v_t, s, y, probes)
        x = x + width * (v_t + v_s) / 2
        integral += width * (div_t + div_s) / 2
        tick(len(x0))
    return integral - 0.5 * (x.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)


def velocity(
    denoise: Denoise, process: Process, x: Tensor, t: Tensor, y: Tensor, probes: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return v [B, C, H, W] and its divergence, float64 [B]."""
    if t == 0:
        # x_t contains no noise, which could not be predicted: E[v | x] = d_alpha x
        d_alpha = float(process.coefficients(t).d_alpha)
        trace = d_alpha * x[0].numel()
        return d_alpha * x, torch.full((len(x),), trace, dtype=torch.float64, device=x.device)

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        prediction = denoise(x, t, y)
        v = target(process, "v", prediction.x0, prediction.eps, t)
        return v.detach(), divergence(v, x, probes)


def divergence(v: Tensor, x: Tensor, probes: Iterable[Tensor]) -> Tensor:
    """Return the mean over probes e of e (dv/dx) e, float64 [B] (Hutchinson; 1810.01367).

    Unbiased with Rademacher vectors, exact with `UnitProbes`; images must not depend on each other.
    """
    products = []
    for e in probes:
        (vjp,) = torch.autograd.grad(v, x, e, retain_graph=True)
        products.append((vjp.double() * e).flatten(1).sum(1))
    return torch.stack(products).mean(0)


@dataclass(frozen=True)
class UnitProbes:
    """All D unit vectors times sqrt(D), one at a time: D x D numbers would not fit in memory."""

    x: Tensor  # [B, C, H, W]

    def __iter__(self) -> Iterator[Tensor]:
        dims = self.x[0].numel()
        for index in range(dims):
            # a mean over D probes is to be a sum: hence sqrt(D)
            unit = torch.zeros_like(self.x)
            unit.flatten(1)[:, index] = math.sqrt(dims)
            yield unit


def ode_times(process: Process, steps: int) -> Tensor:
    """Return ascending times whose arcs grow as cubes: v varies most near the data."""
    cubes = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 3
    if not isinstance(process, DDPM):
        return process.end * cubes
    # a DDPM has integer times only: the nearest ones, each once, so that there may be fewer steps
    arcs = process.arc(torch.arange(process.start + 1))
    return (arcs - arcs[-1] * cubes[:, None]).abs().argmin(1).unique().double()
