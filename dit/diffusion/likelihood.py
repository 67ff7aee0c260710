"""The variational bound: bits per dimension of one step, and of a whole DDPM chain."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dit.diffusion.process import DDPM, Denoise, Prediction, Process, add_noise, like, posterior

Tick = Callable[[int], object]  # is told of images that have done one more step


def variational_bound(
    process: Process, x0: Tensor, x_t: Tensor, t: Tensor, said: Prediction
) -> Tensor:
    """Bits per dimension [B] of one step t -> t - 1 (2006.11239, equation 5; variance of 2102.09672, equation 15).

    KL from the true posterior to the model's step; in the last step (t = 1) the likelihood of x0 in bins of 1/127.5,
    the width of a pixel level, which the DiT release applies to latents too.
    """
    assert said.var_fraction is not None
    true = posterior(process, x_t, x0, t, t - 1)
    mean = posterior(process, x_t, said.x0, t, t - 1).mean
    floor = posterior(
        process, x_t, x0, t.clamp(min=2), t.clamp(min=2) - 1
    ).var_min  # at t = 1 var_min is 0
    log_var = said.var_fraction * true.var_max.log() + (1 - said.var_fraction) * floor.log()
    kl = normal_kl(true.mean, floor.log(), mean, log_var)
    nll = -discretized_log_likelihood(x0, mean, log_var / 2)
    first = (t == 1).to(x0.device, non_blocking=True).reshape(-1, *[1] * (x0.ndim - 1))
    return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)


def normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N1 || N2) in nats, elementwise."""
    ratio = torch.exp(log_var1 - log_var2)
    return 0.5 * (log_var2 - log_var1 - 1 + ratio + (mean1 - mean2).square() * torch.exp(-log_var2))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log mass in nats that a normal puts on the bin of width 2/255 around x; outermost bins reach to infinity."""
    upper = torch.special.ndtr((x + 1 / 255 - mean) * torch.exp(-log_std))
    lower = torch.special.ndtr((x - 1 / 255 - mean) * torch.exp(-log_std))
    upper = torch.where(x > 0.999, 1.0, upper)
    lower = torch.where(x < -0.999, 0.0, lower)
    return (upper - lower).clamp(min=1e-12).log()


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
    denoise: Denoise,
    process: Process,
    x0: Tensor,
    y: Tensor,
    times: Tensor,
    noise: Callable[[], Tensor],
    levels: Levels,
    variance: str,
    tick: Tick = lambda images: None,
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
    prior, steps = (
        normal_kl(like(at.alpha, x0) * x0, 2 * like(at.sigma, x0).log(), zero, zero),
        zero,
    )
    floor = zero
    for t, s in zip(times[:-1], times[1:], strict=True):
        x_t = add_noise(process, x0, noise(), t)
        said = denoise(x_t, t, y)
        true = posterior(process, x_t, x0, t, s)
        mean = posterior(process, x_t, levels.clip(said.x0), t, s).mean
        floor = (
            true.var_min.log() if s > 0 else floor
        )  # the last step's is 0: the one before it serves
        fraction = (
            said.var_fraction if variance == "learned" else float(variance == "large" and s > 0)
        )
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
    return torch.cat(
        [1 + torch.linspace(process.end - 1, 0, steps).round(), torch.zeros(1)]
    ).double()
