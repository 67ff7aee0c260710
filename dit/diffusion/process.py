"""Noise processes: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 at the data.

Every process has a tangent (d_alpha, d_sigma) with alpha d_sigma - sigma d_alpha = 1, which defines the velocity
v = d_alpha x0 + d_sigma eps and inverts alike for all: x0 = d_sigma x_t - sigma v, eps = -d_alpha x_t + alpha v.
Times are float64, on CPU and without dimensions while sampling, [B] while training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """Of the process at some times, each in the times' shape."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class Process(Protocol):
    """What samplers and losses need to know of a noise process."""

    end: float  # the time of pure noise
    slope: str  # what is constant while x0 and eps are: the derivative that ODE solvers average

    def coefficients(self, t: Tensor) -> Coefficients:
        """Coefficients at times `t`, float64."""

    def arc(self, t: Tensor) -> Tensor:
        """How far along its curve (alpha, sigma) the process is: the tangent is the curve's derivative by it."""

    def network_time(self, t: Tensor) -> Tensor:
        """Times as the network's embedding gets them, about 0 … 1000."""

    def sample_time(self, n: int, generator: torch.Generator) -> Tensor:
        """Training times [n], float64."""

    def times(self, steps: int, spacing: str = "uniform") -> Tensor:
        """Sampling times [steps + 1], from `end` down to 0, float64."""


def spaced(start: float, points: int, spacing: str) -> Tensor:
    """Points [n] from `start` down to 0: `uniform`, or by `cosine` denser at both ends, as quantiles of Beta(1/2, 1/2)
    are (after 2407.12173, with exponents 1/2), float64."""
    if spacing == "uniform":
        return torch.linspace(start, 0, points, dtype=torch.float64)
    return start * torch.linspace(math.pi / 2, 0, points, dtype=torch.float64).sin() ** 2


LEAST_SIGNAL = {"linear": 0.0, "cosine": 0.03}  # alpha from which sampling may begin


class DDPM:
    """Discrete variance-preserving diffusion: t counts noising steps, 0 … 1000.

    `linear`: beta from 1e-4 to 0.02 (2006.11239, section 4). `cosine`: 2102.09672, equation 17.
    """

    slope = "eps"  # of x / alpha against sigma / alpha

    def __init__(self, schedule: str = "linear", steps: int = 1000):
        self.end = float(steps)
        betas = linear_betas(steps) if schedule == "linear" else cosine_betas(steps)
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
        self.alpha, self.sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self.start = int((self.alpha >= LEAST_SIGNAL[schedule]).sum()) - 1

    def coefficients(self, t: Tensor) -> Coefficients:
        alpha, sigma = self.alpha[t.long().cpu()], self.sigma[t.long().cpu()]
        return Coefficients(alpha, sigma, -sigma, alpha)

    def arc(self, t: Tensor) -> Tensor:
        alpha, sigma, *_ = self.coefficients(t)
        return torch.atan2(sigma, alpha)  # the angle of the unit circle

    def network_time(self, t: Tensor) -> Tensor:
        return t - 1  # published networks count the least noisy step as 0

    def sample_time(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(1, int(self.end) + 1, (n,), generator=generator).double()

    def times(self, steps: int, spacing: str = "uniform") -> Tensor:
        """Whole numbers spaced from `start`, both ends included, as the DiT release respaces (250 of 1000).

        `start` is 1000 for linear betas. The cosine's last alphas are so small (5e-5) that x0 from a predicted eps is
        off by 20,000 times the error of eps; papers clip x0 there, which latents do not allow. So cosine sampling
        starts at 980, where pure noise and noised data can still hardly be told apart (alpha 0.03).
        """
        last = torch.zeros(1, dtype=torch.float64)
        return torch.cat([1 + spaced(self.start - 1, steps, spacing).round(), last])


class Flow:
    """Flow matching on straight lines (2210.02747, 2209.03003): alpha = 1 - t, sigma = t, v = eps - x0.

    Args:
        time_sampling: density of training times, `uniform` or `logit-normal` (2403.03206, section 3.1).
        shift: moves times towards noise, t -> s t / (1 + (s - 1) t) (2403.03206, equation 23).
    """

    end = 1.0
    slope = "v"  # of x against t

    def __init__(self, time_sampling: str = "uniform", shift: float = 1.0):
        self.time_sampling, self.shift = time_sampling, shift

    def coefficients(self, t: Tensor) -> Coefficients:
        t = t.double()
        return Coefficients(1 - t, t, -torch.ones_like(t), torch.ones_like(t))

    def arc(self, t: Tensor) -> Tensor:
        return t.double()

    def network_time(self, t: Tensor) -> Tensor:
        return 1000 * t

    def sample_time(self, n: int, generator: torch.Generator) -> Tensor:
        if self.time_sampling == "uniform":
            return self._shifted(torch.rand(n, generator=generator, dtype=torch.float64))
        return self._shifted(torch.randn(n, generator=generator, dtype=torch.float64).sigmoid())

    def times(self, steps: int, spacing: str = "uniform") -> Tensor:
        return self._shifted(spaced(1, steps + 1, spacing))

    def _shifted(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)


def linear_betas(steps: int) -> Tensor:
    """Betas [steps] of 2006.11239, scaled so that fewer steps end in the same noise."""
    return torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)


def cosine_betas(steps: int) -> Tensor:
    """Betas [steps] of 2102.09672, equation 17, clipped at 0.999."""
    f = (
        torch.cos(
            (torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2
        )
        ** 2
    )
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


class Posterior(NamedTuple):
    """q(x_s | x_t, x0), a Gaussian, with the two variances between which a learned one lies."""

    mean: Tensor
    var_min: Tensor  # the true posterior's, "fixed small"
    var_max: Tensor  # of the forward step from s to t, "fixed large"


def posterior(process: Process, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Posterior:
    """Of any time s < t (2006.11239, equations 6 and 7; 2102.09672, section 3.2); images [B, ...], times [] or [B].

    As both times are free, respacing 1000 steps to 250 is a choice of times.
    """
    at_t, at_s = process.coefficients(t), process.coefficients(s)
    step = at_t.alpha / at_s.alpha  # of the forward step s -> t
    var_max = at_t.sigma**2 - step**2 * at_s.sigma**2
    var_min = var_max * at_s.sigma**2 / at_t.sigma**2
    to_x_t = step * at_s.sigma**2 / at_t.sigma**2
    to_x0 = at_s.alpha * var_max / at_t.sigma**2
    mean = like(to_x_t, x_t) * x_t + like(to_x0, x_t) * x0
    return Posterior(mean, like(var_min, x_t), like(var_max, x_t))


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient [] or [B] in the precision of `x` [B, ...], shaped to multiply it.

    One of [B] goes to the device of `x`; one of all images stays on the CPU, where kernels take it as an argument.
    """
    if coefficient.ndim == 0:
        return coefficient.to(x.dtype)
    return coefficient.to(x.device, x.dtype, non_blocking=True).reshape(-1, *[1] * (x.ndim - 1))


def network_times(process: Process, t: Tensor, x: Tensor) -> Tensor:
    """Times [] or [B] as the network gets them for images `x` [B, ...]: [B], in their precision."""
    time = process.network_time(t)
    if time.ndim == 0:
        return x.new_full((len(x),), float(time))
    return time.to(x.device, x.dtype, non_blocking=True)


def add_noise(process: Process, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) eps."""
    at = process.coefficients(t)
    return like(at.alpha, x0) * x0 + like(at.sigma, x0) * eps


class Prediction(NamedTuple):
    """Of one denoising; all in the shape of x_t."""

    x0: Tensor
    eps: Tensor
    out: Tensor  # the network's own quantity: eps, x0 or v
    var_fraction: Tensor | None  # 0 = smallest, 1 = largest posterior variance, on a log scale

    def rows(self, part: slice) -> "Prediction":
        """Of some images of the batch."""
        variance = None if self.var_fraction is None else self.var_fraction[part]
        return Prediction(self.x0[part], self.eps[part], self.out[part], variance)


class Denoise(Protocol):
    """Anything that denoises: a `Denoiser`, or guidance around one."""

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """Noisy latents [B, C, H, W], times [] or [B], class ids [B]."""


@dataclass(frozen=True)
class Denoiser:
    """Reads a network's output as a prediction of `objective`: eps, x0 or v."""

    network: Callable[[Tensor, Tensor, Tensor], Tensor]
    process: Process
    objective: str
    learn_sigma: bool = False

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        out = self.network(x_t, network_times(self.process, t, x_t), y).to(x_t.dtype)
        out, var = out.chunk(2, dim=1) if self.learn_sigma else (out, None)
        x0, eps = to_x0_eps(self.process, self.objective, out, x_t, t)
        return Prediction(x0, eps, out, None if var is None else (var + 1) / 2)


def to_x0_eps(
    process: Process, objective: str, out: Tensor, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Data and noise from a prediction of either, or of v (2202.00512, appendix D, for any process)."""
    alpha, sigma, d_alpha, d_sigma = (like(c, x_t) for c in process.coefficients(t))
    if objective == "eps":
        return (x_t - sigma * out) / alpha, out
    if objective == "x0":
        return out, (x_t - alpha * out) / sigma
    return d_sigma * x_t - sigma * out, -d_alpha * x_t + alpha * out


def target(process: Process, objective: str, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What the network should have said."""
    at = process.coefficients(t)
    return {"eps": eps, "x0": x0, "v": like(at.d_alpha, x0) * x0 + like(at.d_sigma, x0) * eps}[
        objective
    ]
