"""The variational bound of a DDPM in bits per dimension: of one step, and of the full chain."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dit.diffusion.process import DDPM, Denoise, Prediction, Process, add_noise, like, posterior

Tick = Callable[[int], object]  # called with the number of images after each step


def variational_bound(
    process: Process, x0: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction
) -> Tensor:
    """Return the bound's term of the step t -> t - 1, [B] (2006.11239, equation 5).

    It is the KL divergence of the model's step from the posterior; for t = 1 the likelihood of x0
    in bins of 1/127.5, the width of a pixel level, which the DiT release applies to latents too.
    """
    # at t = 1 the posterior's variance is 0: that of t = 2 is used, as in the release
    t_min = t.clamp(min=2)
    log_var_min = posterior(process, x_t, x0, t_min, t_min - 1).var_min.log()

    kl, mean, log_var = step_kl(process, x0, x_t, (t, t - 1), prediction, log_var_min)
    nll = -discretized_log_likelihood(x0, mean, log_var / 2)
    first = (t == 1).to(x0.device, non_blocking=True).reshape(-1, *[1] * (x0.ndim - 1))
    return bits_per_dim(torch.where(first, nll, kl))


def step_kl(
    process: Process,
    x0: Tensor,
    x_t: Tensor,
    step: tuple[Tensor, Tensor],
    prediction: Prediction,
    log_var_min: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(posterior || the model's step t -> s), and that step's mean and log variance."""
    assert prediction.var_fraction is not None, "the network has no variance"
    true = posterior(process, x_t, x0, *step)
    mean = posterior(process, x_t, prediction.x0, *step).mean
    # 2102.09672, equation 15
    fraction = prediction.var_fraction
    log_var = fraction * true.var_max.log() + (1 - fraction) * log_var_min
    return normal_kl(true.mean, log_var_min, mean, log_var), mean, log_var


def normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """Return KL(N1 || N2) in nats, elementwise."""
    ratio = torch.exp(log_var1 - log_var2)
    return 0.5 * (log_var2 - log_var1 - 1 + ratio + (mean1 - mean2).square() * torch.exp(-log_var2))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log mass of a normal on the bin of width 2/255 around x (2006.11239, eq. 13)."""
    upper = torch.special.ndtr((x + 1 / 255 - mean) * torch.exp(-log_std))
    lower = torch.special.ndtr((x - 1 / 255 - mean) * torch.exp(-log_std))
    # the outermost bins are unbounded
    upper = torch.where(x > 0.999, 1.0, upper)
    lower = torch.where(x < -0.999, 0.0, lower)
    return (upper - lower).clamp(min=1e-12).log()


def bits_per_dim(nats: Tensor) -> Tensor:
    """Average [B, ...] over all but the images: [B]."""
    return nats.flatten(1).mean(1) / math.log(2)


class Bound(NamedTuple):
    """The parts of the bound on -log2 p(x0), [B] in bits per dimension (2006.11239, equation 5)."""

    prior: Tensor  # L_T: how far q(x_T | x0) is from the prior
    steps: Tensor  # the sum of L_{t-1} over all steps but the last
    decoder: Tensor  # L_0: the last step's likelihood of pixel levels


class Levels(NamedTuple):
    """The positions of the 256 pixel levels in latents: x = (pixel - shift) * scale.

    Pixels are in [-1, 1]; shift and scale broadcast to [C, 1, 1].
    """

    shift: Tensor
    scale: Tensor

    def pixels(self, x: Tensor) -> Tensor:
        """Map latents to pixels."""
        return x / self.scale + self.shift

    def clip(self, x: Tensor) -> Tensor:
        """Clip latents between black and white."""
        return (self.pixels(x).clamp(-1, 1) - self.shift) * self.scale


def bound_of_chain(
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
    """Return the bound of the chain along `times`, with one draw of noise for each step.

    2006.11239, equations 5 and 13; a chain of fewer steps as in 2102.09672, section 3.2.

    Args:
        denoise: predicts x0.
        process: a DDPM.
        x0: images [B, C, H, W] on pixel levels.
        y: class ids [B].
        times: [steps + 1], descending to 0, two steps or more.
        noise: returns standard normal draws like x0.
        levels: of the pixels in x0.
        variance: small, large or learned; the last step's is small where it is not learned.
        tick: called after each step.
    """
    # KL of q(x_T | x0) from the standard normal
    at = process.coefficients(times[0])
    zero = torch.zeros_like(x0)
    prior = normal_kl(like(at.alpha, x0) * x0, 2 * like(at.sigma, x0).log(), zero, zero)
    steps = log_var_min = zero

    for t, s in pairwise(times):
        x_t = add_noise(process, x0, noise(), t)
        prediction = denoise(x_t, t, y)
        # both papers' releases clip the predicted x0 to the range of pixels
        prediction = prediction._replace(x0=levels.clip(prediction.x0))
        if variance != "learned":
            fixed = torch.tensor(float(variance == "large" and s > 0))
            prediction = prediction._replace(var_fraction=fixed)

        # the smallest variance of the last step is 0: it keeps that of the step before
        if s > 0:
            log_var_min = posterior(process, x_t, x0, t, s).var_min.log()
        kl, mean, log_var = step_kl(process, x0, x_t, (t, s), prediction, log_var_min)
        if s > 0:
            steps = steps + kl
        tick(len(x0))

    # the last step's mean and variance, in units of pixels
    log_std = log_var / 2 - levels.scale.log()
    decoder = -discretized_log_likelihood(levels.pixels(x0), levels.pixels(mean), log_std)
    return Bound(bits_per_dim(prior), bits_per_dim(steps), bits_per_dim(decoder))


def chain_times(process: DDPM, steps: int) -> Tensor:
    """Return times [steps + 1] of the DDPM chain, or of an evenly spaced part of it, down to 0."""
    noisy = 1 + torch.linspace(process.end - 1, 0, steps).round()
    return torch.cat([noisy, torch.zeros(1)]).double()
