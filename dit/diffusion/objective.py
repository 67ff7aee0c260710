"""Training losses. All randomness comes in as tensors, so that a loss is a function."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dit.diffusion.likelihood import variational_bound
from dit.diffusion.process import Denoiser, add_noise, target
from dit.diffusion.weighting import min_snr, turned_velocity, velocity_weight


class Loss(NamedTuple):
    """The loss of each image [B] and its parts by name, each [B] and without gradient."""

    each: Tensor
    terms: dict[str, Tensor]

    @property
    def mean(self) -> Tensor:
        """The mean over images, []."""
        return self.each.mean()

    def weighted(self, weights: Tensor) -> "Loss":
        """Multiply each image's loss and terms by its weight [B]."""
        weights = weights.to(self.each, non_blocking=True)
        terms = {name: weights * term for name, term in self.terms.items()}
        return Loss(weights * self.each, terms)


LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Loss]
"""(x0 [B, C, H, W], class ids [B], times [B], noise [B, C, H, W], uniforms [B, U]) -> loss.

The uniforms, in [0, 1), are what else the loss of some network draws.
"""


def drop_labels(y: Tensor, drop: Tensor, null_label: int) -> Tensor:
    """Replace class ids [B] where `drop` [B] by the null class (2207.12598, algorithm 1)."""
    return torch.where(drop, null_label, y)


def diffusion_loss(
    denoise: Denoiser,
    x0: Tensor,
    y: Tensor,
    t: Tensor,
    eps: Tensor,
    min_snr_gamma: float | None = None,
    velocity: bool = False,
    cosine: float = 0.0,
) -> Loss:
    """Return the squared error (2006.11239, equation 14; 2210.02747, equation 23 for flows).

    With a learned variance, the variational bound is added (2102.09672, equation 16). Latents x0
    and noise eps are [B, C, H, W], class ids y [B] with dropped ones already null, times t [B].

    Args:
        velocity: weigh the error as one of the flow's velocity (2511.13720, equation 6).
        cosine: weight of 1 - cos of the predicted and the true velocity (2410.10356, section 4).
    """
    x_t = add_noise(denoise.process, x0, eps, t)
    prediction = denoise(x_t, t, y)
    error = prediction.out - target(denoise.process, denoise.objective, x0, eps, t)
    mse = error.square().flatten(1).mean(1)

    each, terms = mse, {"mse": mse.detach()}
    if min_snr_gamma is not None:
        each = min_snr(denoise.process, denoise.objective, t, min_snr_gamma).to(mse) * mse
    if velocity:
        each = velocity_weight(denoise.objective, t).to(mse) * mse
    if cosine:
        # of a flow, whose velocity is eps - x0
        turned = turned_velocity(prediction.eps - prediction.x0, eps - x0)
        each, terms["cosine"] = each + cosine * turned, turned.detach()
    if prediction.var_fraction is not None:
        # its gradient reaches the variance alone (2102.09672, section 3.1); lambda 0.001 times 1000
        # steps, of which one stands for all, is 1
        prediction = prediction._replace(x0=prediction.x0.detach())
        vb = variational_bound(denoise.process, x0, x_t, t, prediction)
        each, terms["vb"] = each + vb, vb.detach()
    return Loss(each, terms)


def variational_loss(denoise: Denoiser, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> Loss:
    """Return the bound alone, which trains the mean too (2102.09672, L_vlb), in bits/dim."""
    x_t = add_noise(denoise.process, x0, eps, t)
    vb = variational_bound(denoise.process, x0, x_t, t, denoise(x_t, t, y))
    # one term stands for the sum over all times; the prior's part has nothing to train
    return Loss(denoise.process.end * vb, {"vb": vb.detach()})


def loss_terms(learn_sigma: bool, cosine: float = 0.0) -> tuple[str, ...]:
    """Return the names of the terms of `diffusion_loss`."""
    return ("mse", *["cosine"] * (cosine > 0), *["vb"] * learn_sigma)
