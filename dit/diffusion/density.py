"""How likely data is: the variational bound of a DDPM chain, and the density of the probability-flow ODE."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise, target
from dit.diffusion.objective import discretized_log_likelihood, normal_kl
from dit.diffusion.process import DDPM, Process, add_noise, like, posterior

Tick = Callable[[int], object]  # is told of images that have done one more step


class Bound(NamedTuple):
    """Parts of the bound on -log2 p(x0) (2006.11239, equation 5) of each image, [B] in bits per dimension."""

    prior: Tensor  # L_T: what noised data still tells
    steps: Tensor  # the sum of L_{t-1} over all steps but the last
    decoder: Tensor  # L_0: the last step's likelihood of pixel levels


class Levels(NamedTuple):
    """Where the 256 pixel levels lie: x = (pixel - shift) * scale, pixels in [-1, 1]; both broadcast to [C, 1, 1]."""

    shift: Tensor
    scale: Tensor

    def pixels(self, x: Tensor) -> Tensor:
        """The inverse."""
        return x / self.scale + self.shift

    def clip(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] within black and white."""
        return (self.pixels(x).clamp(-1, 1) - self.shift) * self.scale


def variational_bound_of_chain(
    denoise: Denoise, process: Process, x0: Tensor, y: Tensor, times: Tensor, noise: Callable[[], Tensor],
    levels: Levels, variance: str, tick: Tick = lambda images: None,
) -> Bound:
    """The bound of the chain along `times`, with one draw of noise for each step.

    2006.11239, equations 5 and 13; a chain of fewer steps as in 2102.09672, section 3.2. The predicted x0 is clipped to
    the range of pixels, as in the evaluation of both papers' releases.

    Args:
        denoise: what predicts x0.
        process: a DDPM.
        x0: images [B, C, H, W] on pixel levels.
        y: class ids [B].
        times: [steps + 1], descending to 0, two steps or more.
        noise: gives standard normal draws like x0.
        levels: of the pixels in x0.
        variance: of the model's steps: small, large or learned; of the last always small where it is not learned.
        tick: called after each step.
    """
    at = process.coefficients(times[0])
    zero = torch.zeros_like(x0)
    prior, steps = normal_kl(like(at.alpha, x0) * x0, 2 * like(at.sigma, x0).log(), zero, zero), zero
    floor = zero
    for t, s in zip(times[:-1], times[1:], strict=True):
        x_t = add_noise(process, x0, noise(), t)
        said = denoise(x_t, t, y)
        true = posterior(process, x_t, x0, t, s)
        mean = posterior(process, x_t, levels.clip(said.x0), t, s).mean
        floor = true.var_min.log() if s > 0 else floor  # the last step's is 0: the one before it serves
        fraction = said.var_fraction if variance == "learned" else float(variance == "large" and s > 0)
        assert fraction is not None, "the network has no variance"
        log_var = fraction * true.var_max.log() + (1 - fraction) * floor
        if s > 0:
            steps = steps + normal_kl(true.mean, floor, mean, log_var)
        tick(len(x0))
    log_std = log_var / 2 - levels.scale.log()
    decoder = -discretized_log_likelihood(levels.pixels(x0), levels.pixels(mean), log_std)
    return Bound(*(part.flatten(1).mean(1) / math.log(2) for part in (prior, steps, decoder)))


def chain(process: DDPM, steps: int) -> Tensor:
    """Times [steps + 1] of the whole DDPM chain or of an evenly spaced part of it, from its very end to 0."""
    return torch.cat([1 + torch.linspace(process.end - 1, 0, steps).round(), torch.zeros(1)]).double()


def ode_log_density(
    denoise: Denoise, process: Process, x0: Tensor, y: Tensor, times: Tensor, probes: Iterable[Tensor],
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
        return d_alpha * x, torch.full((len(x),), d_alpha * x[0].numel(), dtype=torch.float64, device=x.device)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        said = denoise(x, t, y)
        v = target(process, "v", said.x0, said.eps, t)
        return v.detach(), divergence(v, x, probes)


def divergence(v: Tensor, x: Tensor, probes: Iterable[Tensor]) -> Tensor:
    """Mean over probes of e (dv/dx) e, float64 [B]: Hutchinson's estimate with Rademacher vectors (1810.01367).

    Exact with `UnitProbes`. No image's v may depend on another image.
    """
    products = [(torch.autograd.grad(v, x, e, retain_graph=True)[0].double() * e).flatten(1).sum(1) for e in probes]
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
