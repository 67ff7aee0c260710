"""Training losses. All randomness comes in as tensors, so that a loss is a function."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoiser, Prediction, target
from dit.diffusion.process import Process, add_noise, posterior


class Loss(NamedTuple):
    """Of each image [B]; `terms` name its parts, each [B] and without gradient."""

    each: Tensor
    terms: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """What training descends, []."""
        return self.each.mean()

    def weighted(self, weights: Tensor) -> "Loss":
        """Each image's loss, and the terms of it, times its weight [B]."""
        weights = weights.to(self.each, non_blocking=True)
        return Loss(weights * self.each, {name: weights * term for name, term in self.terms.items()})


class LossFunction(Protocol):
    """Any loss of noised data, its network bound to it."""

    def __call__(self, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> Loss:
        """Latents [B, C, H, W], class ids [B], times [B], standard normal noise [B, C, H, W]."""
        ...


def drop_labels(y: Tensor, drop: Tensor, null_label: int) -> Tensor:
    """Class ids [B] with those under `drop` [B] (bool) replaced by the null class (2207.12598, algorithm 1)."""
    return torch.where(drop, null_label, y)


def diffusion_loss(
    denoise: Denoiser, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, min_snr_gamma: float | None = None
) -> Loss:
    """Squared error of the network's quantity; with a learned variance, plus its variational bound (2102.09672).

    Args:
        denoise: network and process.
        x0: latents [B, C, H, W].
        y: class ids [B], dropped ones already null.
        t: times [B], float64.
        eps: standard normal noise [B, C, H, W].
        min_snr_gamma: clamp of the min-SNR weighting (2303.09556); unweighted unless given.
    """
    x_t = add_noise(denoise.process, x0, eps, t)
    said = denoise(x_t, t, y)
    error = said.out - target(denoise.process, denoise.objective, x0, eps, t)
    mse = error.square().flatten(1).mean(1)
    weight = 1.0 if min_snr_gamma is None else min_snr(denoise.process, denoise.objective, t, min_snr_gamma).to(mse)
    if said.var_fraction is None:
        return Loss(weight * mse, {"mse": mse.detach()})
    vb = variational_bound(denoise.process, x0, x_t, t, Prediction(said.x0.detach(), *said[1:]))
    return Loss(weight * mse + vb, {"mse": mse.detach(), "vb": vb.detach()})


def variational_loss(denoise: Denoiser, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> Loss:
    """The variational bound alone, which trains the mean too (2102.09672, L_vlb), in bits per dimension.

    One term stands for the sum over all times, so that the loss estimates the whole bound (but for the prior's part,
    which nothing trains). Arguments as those of `diffusion_loss`.
    """
    x_t = add_noise(denoise.process, x0, eps, t)
    vb = variational_bound(denoise.process, x0, x_t, t, denoise(x_t, t, y))
    return Loss(denoise.process.end * vb, {"vb": vb.detach()})


def loss_terms(learn_sigma: bool) -> tuple[str, ...]:
    """Names of the terms of `diffusion_loss`."""
    return ("mse", "vb") if learn_sigma else ("mse",)


def min_snr(process: Process, objective: str, t: Tensor, gamma: float) -> Tensor:
    """Weights [B] that make every objective an x0 loss weighted by min(SNR, gamma) (2303.09556, equation 9)."""
    at = process.coefficients(t)
    snr = (at.alpha / at.sigma) ** 2
    x0_per_out = {"eps": at.sigma / at.alpha, "x0": torch.ones_like(snr), "v": at.sigma}[objective]
    return snr.clamp(max=gamma) * x0_per_out**2


def variational_bound(process: Process, x0: Tensor, x_t: Tensor, t: Tensor, said: Prediction) -> Tensor:
    """Bits per dimension [B] of one step t -> t - 1 (2006.11239, equation 5; variance of 2102.09672, equation 15).

    KL from the true posterior to the model's step; in the last step (t = 1) the likelihood of x0 in bins of 1/127.5,
    the width of a pixel level, which the DiT release applies to latents too.
    """
    assert said.var_fraction is not None
    true = posterior(process, x_t, x0, t, t - 1)
    mean = posterior(process, x_t, said.x0, t, t - 1).mean
    floor = posterior(process, x_t, x0, t.clamp(min=2), t.clamp(min=2) - 1).var_min  # at t = 1 var_min is 0
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
