"""Guidance maps a denoiser to a denoiser, so samplers never hear of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from dit.diffusion.process import Denoise, Prediction, Process, like, target

Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, t, y) -> the gradient of log p(y | x_t) with respect to x_t, in its shape."""


def cfg(
    denoise: Denoise,
    process: Process,
    scale: float,
    null_label: int,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
    guide: Denoise | None = None,
) -> Denoise:
    """Classifier-free guidance (2207.12598): weak + scale * (strong - weak), the weak prediction that of no class.

    Args:
        denoise: what to guide.
        process: whose end is time 1 of the interval.
        scale: 1 is no guidance.
        null_label: class id that means "no class".
        interval: times, 0 = data and 1 = noise, between which to guide (2404.07724).
        channels: guide only the first so many, as the DiT release does with 3; all unless given. The other channels
            and the variance stay conditional.
        guide: autoguidance (2406.02507): a weaker denoiser, whose conditional prediction is extrapolated from instead.
            Its `out` has to be the same quantity, see `with_objective`.
    """
    low, high = interval

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        if scale == 1 or not low <= float(t) / process.end <= high:
            return denoise(x_t, t, y)
        strong, weak = (
            (denoise(x_t, t, y), guide(x_t, t, y))
            if guide
            else _halves(denoise, x_t, t, y, null_label)
        )
        x0, eps, out = (
            _extrapolate(s, w, scale, channels) for s, w in zip(strong[:3], weak[:3], strict=True)
        )
        return Prediction(x0, eps, out, strong.var_fraction)

    return guided


def _halves(
    denoise: Denoise, x_t: Tensor, t: Tensor, y: Tensor, null_label: int
) -> tuple[Prediction, Prediction]:
    """Conditional and unconditional, in one call."""
    both = denoise(torch.cat([x_t, x_t]), t, torch.cat([y, torch.full_like(y, null_label)]))
    return both.rows(slice(len(x_t))), both.rows(slice(len(x_t), None))


def _extrapolate(strong: Tensor, weak: Tensor, scale: float, channels: int | None) -> Tensor:
    guided = weak + scale * (strong - weak)
    return (
        guided
        if channels is None
        else torch.cat([guided[:, :channels], strong[:, channels:]], dim=1)
    )


def classifier_guidance(
    denoise: Denoise, process: Process, objective: str, gradient: Gradient, scale: float
) -> Denoise:
    """Classifier guidance (2105.05233): eps - scale * sigma * gradient, and the x0 and `out` that follow.

    This adds scale * gradient to the score, which by Bayes' rule makes an unconditional model conditional at scale 1.
    It is line 2 of algorithm 2, for any process: x_t = alpha x0 + sigma eps has the score -eps / sigma. In an ancestral
    step it moves the mean by scale * gradient * (alpha_s / alpha_t) var_max, which is algorithm 1 up to the choice of
    variance. In pure noise (alpha = 0) there is nothing to classify, and nothing is guided.

    Args:
        denoise: what to guide, conditional or not, itself guided or not.
        process: of `denoise` and of the classifier.
        objective: what `out` is: eps, x0 or v.
        gradient: of the classifier's log p(y | x_t).
        scale: 0 is no guidance.
    """

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        said = denoise(x_t, t, y)
        alpha, sigma, *_ = process.coefficients(t)
        if scale == 0 or alpha == 0:
            return said
        shift = scale * gradient(x_t, t, y)
        x0, eps = said.x0 + like(sigma**2 / alpha, x_t) * shift, said.eps - like(sigma, x_t) * shift
        return Prediction(x0, eps, target(process, objective, x0, eps, t), said.var_fraction)

    return guided


def with_objective(denoise: Denoise, process: Process, objective: str) -> Denoise:
    """The same predictions, their `out` as a network of another objective would say it."""

    def same(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        said = denoise(x_t, t, y)
        return said._replace(out=target(process, objective, said.x0, said.eps, t))

    return same


def ignoring_labels(denoise: Denoise, null_label: int) -> Denoise:
    """Deaf to the class: what a classifier guides where the network knows none."""
    return lambda x_t, t, y: denoise(x_t, t, torch.full_like(y, null_label))
