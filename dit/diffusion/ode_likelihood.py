"""How likely data is: the variational bound of a DDPM chain, and the density of the probability-flow ODE."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
    """log p(x0) in nats, float64 [B], of the probability-flow ODE (2011.13456, equation 39; 2210.02747, appendix C).

    Heun steps of dx/da = v, with `a` the arc of the process, from data to noise, together with the divergence of v:
    log p(x0) = log N(x_end) + integral of div v.

    Args:
        denoise: network and process; gradients go through it.
        process: any.
        x0: images [B, C, H, W], dequantised.
        y: class ids [B].
        times: [steps + 1], ascending from 0, as `ode_times` gives.
        probes: each [B, C, H, W], the same ones each time they are gone through; see `divergence`.
        tick: called after each step.
    """
    x, change = x0, torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for t, s, width in zip(times[:-1], times[1:], process.arc(times).diff().tolist(), strict=True):
        v_t, div_t = velocity(denoise, process, x, t, y, probes)
        v_s, div_s = velocity(denoise, process, x + width * v_t, s, y, probes)
        x = x + width * (v_t + v_s) / 2
        change += width * (div_t + div_s) / 2
        tick(len(x0))
    return change - 0.5 * (x.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)


def velocity(
    denoise: Denoise, process: Process, x: Tensor, t: Tensor, y: Tensor, probes: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """v [B, C, H, W] and its divergence, float64 [B].

    At t = 0 no network is asked, for there x_t says nothing of the noise: v = d_alpha x.
    """
    if t == 0:
        d_alpha = float(process.coefficients(t).d_alpha)
        return d_alpha * x, torch.full(
            (len(x),), d_alpha * x[0].numel(), dtype=torch.float64, device=x.device
        )
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        said = denoise(x, t, y)
        v = target(process, "v", said.x0, said.eps, t)
        return v.detach(), divergence(v, x, probes)


def divergence(v: Tensor, x: Tensor, probes: Iterable[Tensor]) -> Tensor:
    """Mean over probes of e (dv/dx) e, float64 [B]: Hutchinson's estimate with Rademacher vectors (1810.01367).

    Exact with `UnitProbes`. No image's v may depend on another image.
    """
    products = [
        (torch.autograd.grad(v, x, e, retain_graph=True)[0].double() * e).flatten(1).sum(1)
        for e in probes
    ]
    return torch.stack(products).mean(0)


@dataclass(frozen=True)
class UnitProbes:
    """All unit vectors times sqrt(D), each made when asked for: their mean product is the exact divergence."""

    x: Tensor  # [B, C, H, W]

    def __iter__(self) -> Iterator[Tensor]:
        """D vectors, each [B, C, H, W]."""
        dims = self.x[0].numel()
        for place in range(dims):
            unit = torch.zeros_like(self.x)
            unit.flatten(1)[:, place] = math.sqrt(dims)
            yield unit


def ode_times(process: Process, steps: int) -> Tensor:
    """Times from 0 to the process's start whose arcs grow as cubes: fine near data, where v varies most.

    A DDPM has whole times only, of which the nearest are taken, each once: somewhat fewer than `steps` at most.
    """
    cubes = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 3
    if not isinstance(process, DDPM):
        return process.end * cubes
    arcs = process.arc(torch.arange(process.start + 1))
    return (arcs - arcs[-1] * cubes[:, None]).abs().argmin(1).unique().double()
