"""Noise processes, x_t = alpha(t) x0 + sigma(t) eps with t = 0 at the data, and the denoiser.

Every process has a tangent (d_alpha, d_sigma) with alpha d_sigma - sigma d_alpha = 1. It defines
the velocity v = d_alpha x0 + d_sigma eps, and inverts in the same way for all processes:
x0 = d_sigma x_t - sigma v and eps = -d_alpha x_t + alpha v.
Times are float64 on the CPU: [] while sampling, [B] while training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dit.diffusion.schedules import LEAST_SIGNAL, cosine_betas, linear_betas, spaced


class Coefficients(NamedTuple):
    """Coefficients of a process, each in the shape of the times."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class Process(Protocol):
    """What samplers and losses need to know of a noise process."""

    end: float  # the time of pure noise
    slope: str  # eps or v: the derivative that ODE solvers average, constant if the prediction is

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t, float64."""

    def arc(self, t: Tensor) -> Tensor:
        """Return the curve's parameter a(t), with dx/da = v: an angle for DDPM, t for a flow."""

    def network_time(self, t: Tensor) -> Tensor:
        """Return times as the network's embedding takes them, about 0 … 1000."""

    def sample_time(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw training times [n], float64."""

    def times(self, steps: int, spacing: str = "uniform") -> Tensor:
        """Return sampling times [steps + 1], from pure noise down to 0, float64."""


class DDPM:
    """Discrete variance-preserving diffusion (2006.11239): t counts noising steps, 0 … 1000.

    `linear`: beta from 1e-4 to 0.02 (section 4). `cosine`: 2102.09672, equation 17.
    """

    slope = "eps"  # of x / alpha against sigma / alpha

    def __init__(self, schedule: str = "linear", steps: int = 1000):
        self.end = float(steps)
        betas = linear_betas(steps) if schedule == "linear" else cosine_betas(steps)
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
        self.alpha, self.sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self.start = int((self.alpha >= LEAST_SIGNAL[schedule]).sum()) - 1

    def coefficients(self, t: Tensor) -> Coefficients:
        alpha = self.alpha[t.long().cpu()]
        sigma = self.sigma[t.long().cpu()]
        return Coefficients(alpha, sigma, -sigma, alpha)

    def arc(self, t: Tensor) -> Tensor:
        alpha, sigma, *_ = self.coefficients(t)
        return torch.atan2(sigma, alpha)  # the angle on the unit circle

    def network_time(self, t: Tensor) -> Tensor:
        return t - 1  # published networks count from 0, the least noisy step

    def sample_time(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(1, int(self.end) + 1, (n,), generator=generator).double()

    def times(self, steps: int, spacing: str = "uniform") -> Tensor:
        # integers from `start` to 1, both included, as the DiT release respaces; then 0
        noisy = 1 + spaced(self.start - 1, steps, spacing).round()
        return torch.cat([noisy, torch.zeros(1, dtype=torch.float64)])


class Flow:
    """Flow matching on straight lines (2210.02747, 2209.03003): alpha = 1 - t, sigma = t.

    Args:
        time_sampling: density of training times, uniform or logit-normal (2403.03206, section 3.1).
        shift: moves times towards noise (2403.03206, equation 23).
    """

    end = 1.0
    slope = "v"  # of x against t

    def __init__(self, time_sampling: str = "uniform", shift: float = 1.0):
        self.time_sampling = time_sampling
        self.shift = shift

    def coefficients(self, t: Tensor) -> Coefficients:
        t = t.double()
        return Coefficients(1 - t, t, -torch.ones_like(t), torch.ones_like(t))  # v = eps - x0

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


def add_noise(process: Process, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return x_t = alpha(t) x0 + sigma(t) eps (2006.11239, equation 4)."""
    at = process.coefficients(t)
    return like(at.alpha, x0) * x0 + like(at.sigma, x0) * eps


class Posterior(NamedTuple):
    """The Gaussian q(x_s | x_t, x0), with the two variances between which a learned one lies."""

    mean: Tensor
    var_min: Tensor  # "fixed small": that of the true posterior
    var_max: Tensor  # "fixed large": that of the forward step from s to t


def posterior(process: Process, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Posterior:
    """Return q(x_s | x_t, x0) for any s < t (2006.11239, equations 6 and 7).

    Images are [B, ...]; times [] or [B]. Respacing 1000 steps to 250 is a choice of times.
    """
    at_t, at_s = process.coefficients(t), process.coefficients(s)
    alpha_ts = at_t.alpha / at_s.alpha  # sqrt(1 - beta) of the forward step s -> t
    var_max = at_t.sigma**2 - alpha_ts**2 * at_s.sigma**2  # beta of that step
    var_min = var_max * at_s.sigma**2 / at_t.sigma**2

    from_x_t = alpha_ts * at_s.sigma**2 / at_t.sigma**2
    from_x0 = at_s.alpha * var_max / at_t.sigma**2
    mean = like(from_x_t, x_t) * x_t + like(from_x0, x_t) * x0
    return Posterior(mean, like(var_min, x_t), like(var_max, x_t))


def target(process: Process, objective: str, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return the quantity that a network of this objective predicts: eps, x0 or v."""
    if objective == "eps":
        return eps
    if objective == "x0":
        return x0
    at = process.coefficients(t)
    return like(at.d_alpha, x0) * x0 + like(at.d_sigma, x0) * eps


def to_x0_eps(
    process: Process, objective: str, out: Tensor, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return data and noise from a prediction of eps, x0 or v (2202.00512, appendix D)."""
    alpha, sigma, d_alpha, d_sigma = (like(c, x_t) for c in process.coefficients(t))
    if objective == "eps":
        return (x_t - sigma * out) / alpha, out
    if objective == "x0":
        return out, (x_t - alpha * out) / sigma
    return d_sigma * x_t - sigma * out, -d_alpha * x_t + alpha * out


class Prediction(NamedTuple):
    """What a denoiser predicts from x_t, all in the shape of x_t."""

    x0: Tensor
    eps: Tensor
    out: Tensor  # the network's own quantity: eps, x0 or v
    var_fraction: Tensor | None  # of the log variance: 0 = var_min, 1 = var_max of the posterior

    def rows(self, part: slice) -> "Prediction":
        """Return the prediction for some images of the batch."""
        variance = None if self.var_fraction is None else self.var_fraction[part]
        return Prediction(self.x0[part], self.eps[part], self.out[part], variance)


# (x_t [B, C, H, W], t [] or [B], y [B]) -> prediction: a `Denoiser`, or guidance around one
Denoise = Callable[[Tensor, Tensor, Tensor], Prediction]


@dataclass(frozen=True)
class Denoiser:
    """A network whose output is a prediction of `objective`: eps, x0 or v."""

    network: Callable[[Tensor, Tensor, Tensor], Tensor]
    process: Process
    objective: str
    learn_sigma: bool = False

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        out = self.network(x_t, network_times(self.process, t, x_t), y).to(x_t.dtype)
        fraction = None
        if self.learn_sigma:
            out, var = out.chunk(2, dim=1)
            fraction = (var + 1) / 2  # from -1 … 1 (2102.09672, equation 15)
        x0, eps = to_x0_eps(self.process, self.objective, out, x_t, t)
        return Prediction(x0, eps, out, fraction)


def network_times(process: Process, t: Tensor, x: Tensor) -> Tensor:
    """Return times [] or [B] as the network takes them: [B], in the precision of x [B, ...]."""
    time = process.network_time(t)
    if time.ndim == 0:
        return x.new_full((len(x),), float(time))
    return time.to(x.device, x.dtype, non_blocking=True)


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient [] or [B] to multiply x [B, ...], in the precision of x."""
    # one for all images stays on the CPU: kernels take it as a number
    if coefficient.ndim == 0:
        return coefficient.to(x.dtype)
    return coefficient.to(x.device, x.dtype, non_blocking=True).reshape(-1, *[1] * (x.ndim - 1))
