"""Guidance: maps a denoiser to a denoiser, so that samplers need not know of it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dit.diffusion.process import (
    Denoise,
    Denoiser,
    Prediction,
    Process,
    like,
    network_times,
    target,
)

Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, t, y) -> the gradient of log p(y | x_t) by x_t, in the shape of x_t."""
Pair = Callable[[Tensor, Tensor, Tensor], tuple[Prediction, Prediction]]
"""(x_t, t, y) -> a strong and a weak prediction."""


def cfg(
    denoise: Denoise,
    process: Process,
    scale: float,
    null_label: int,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
    guide: Denoise | None = None,
    pair: Pair | None = None,
) -> Denoise:
    """Return classifier-free guidance of a denoiser (2207.12598), or autoguidance (2406.02507).

    Args:
        denoise: the denoiser to guide.
        process: its process, whose end is time 1 of the interval.
        scale: of the extrapolation weak + scale * (strong - weak); 1 is no guidance. It is
            w + 1 of equation 6.
        null_label: class id of the null class.
        interval: times between which to guide, 0 = data and 1 = noise (2404.07724, whose
            interval is of noise levels).
        channels: guide only the first so many, as the DiT release does with 3; all if None.
        guide: autoguidance: a weaker denoiser, instead of the null class. Its `out` has to be of
            the same objective, see `with_objective`.
        pair: internal guidance: both predictions of one call, see `inner_pair`.
    """
    low, high = interval

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        if scale == 1 or not low <= float(t) / process.end <= high:
            return denoise(x_t, t, y)

        if pair:
            strong, weak = pair(x_t, t, y)
        elif guide:
            strong, weak = denoise(x_t, t, y), guide(x_t, t, y)
        else:
            # both halves in one call
            null = torch.full_like(y, null_label)
            both = denoise(torch.cat([x_t, x_t]), t, torch.cat([y, null]))
            strong, weak = both.rows(slice(len(x_t))), both.rows(slice(len(x_t), None))

        # given x_t they are affine in each other, so that all three extrapolate alike
        x0 = _extrapolate(strong.x0, weak.x0, scale, channels)
        eps = _extrapolate(strong.eps, weak.eps, scale, channels)
        out = _extrapolate(strong.out, weak.out, scale, channels)
        return Prediction(x0, eps, out, strong.var_fraction)

    return guided


def _extrapolate(strong: Tensor, weak: Tensor, scale: float, channels: int | None) -> Tensor:
    guided = weak + scale * (strong - weak)
    if channels is None:
        return guided
    # the other channels stay conditional
    return torch.cat([guided[:, :channels], strong[:, channels:]], dim=1)


def inner_pair(denoise: Denoiser) -> Pair:
    """Return the predictions of a network and of its inner head (2512.24176).

    Args:
        denoise: whose network returns the two.
    """

    def pair(x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Prediction, Prediction]:
        times = network_times(denoise.process, t, x_t)
        strong, weak = (
            replace(denoise, network=lambda *inputs, out=out: out)(x_t, t, y)
            for out in denoise.network(x_t, times, y)
        )
        return strong, weak

    return pair


def strong_of(pair: Pair) -> Denoise:
    """Return the denoiser of the strong prediction alone."""
    return lambda x_t, t, y: pair(x_t, t, y)[0]


def classifier_guidance(
    denoise: Denoise, process: Process, objective: str, gradient: Gradient, scale: float
) -> Denoise:
    """Return classifier guidance of a denoiser (2105.05233, algorithm 2) for any process.

    It adds scale * gradient to the score. By Bayes' rule, scale 1 makes an unconditional model
    conditional. In an ancestral step it moves the mean by scale * gradient * (alpha_s / alpha_t)
    var_max, which is algorithm 1 up to the choice of variance.

    Args:
        denoise: the denoiser to guide, itself guided or not.
        process: of `denoise` and of the classifier.
        objective: what `out` is: eps, x0 or v.
        gradient: of the classifier's log p(y | x_t).
        scale: 0 is no guidance.
    """

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        prediction = denoise(x_t, t, y)
        alpha, sigma, *_ = process.coefficients(t)
        # at alpha = 0, in pure noise, there is nothing to classify
        if scale == 0 or alpha == 0:
            return prediction

        # the score is -eps / sigma: algorithm 2, line 2, and the x0 that follows from x_t and eps
        shift = scale * gradient(x_t, t, y)
        eps = prediction.eps - like(sigma, x_t) * shift
        x0 = prediction.x0 + like(sigma**2 / alpha, x_t) * shift
        out = target(process, objective, x0, eps, t)
        return Prediction(x0, eps, out, prediction.var_fraction)

    return guided


def with_objective(denoise: Denoise, process: Process, objective: str) -> Denoise:
    """Return a denoiser of the same predictions, whose `out` is that of another objective."""

    def converted(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        prediction = denoise(x_t, t, y)
        return prediction._replace(out=target(process, objective, prediction.x0, prediction.eps, t))

    return converted


def unconditional(denoise: Denoise, null_label: int) -> Denoise:
    """Return a denoiser that always gets the null class."""
    return lambda x_t, t, y: denoise(x_t, t, torch.full_like(y, null_label))
