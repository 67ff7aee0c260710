"""A network with its process: (x_t, t, y) -> what it says of the data and of the noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from dit.diffusion.process import Process, like, network_times


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


def to_x0_eps(process: Process, objective: str, out: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
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
    return {"eps": eps, "x0": x0, "v": like(at.d_alpha, x0) * x0 + like(at.d_sigma, x0) * eps}[objective]
