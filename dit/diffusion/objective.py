"""Training losses. All randomness comes in as tensors, so that a loss is a function."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dit.diffusion.likelihood import variational_bound
from dit.diffusion.process import Denoiser, Prediction, add_noise, target
from dit.diffusion.weighting import min_snr


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
        return Loss(
            weights * self.each, {name: weights * term for name, term in self.terms.items()}
        )


class LossFunction(Protocol):
    """Any loss of noised data, its network bound to it."""

    def __call__(self, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> Loss:
        """Latents [B, C, H, W], class ids [B], times [B], standard normal noise [B, C, H, W]."""
        ...


def drop_labels(y: Tensor, drop: Tensor, null_label: int) -> Tensor:
    """Class ids [B] with those under `drop` [B] (bool) replaced by the null class (2207.12598, algorithm 1)."""
    return torch.where(drop, null_label, y)


def diffusion_loss(
    denoise: Denoiser,
    x0: Tensor,
    y: Tensor,
    t: Tensor,
    eps: Tensor,
    min_snr_gamma: float | None = None,
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
    weight = (
        1.0
        if min_snr_gamma is None
        else min_snr(denoise.process, denoise.objective, t, min_snr_gamma).to(mse)
    )
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
