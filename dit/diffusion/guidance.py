"""Guidance maps a denoiser to a denoiser, so samplers never hear of it."""

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoise, Prediction
from dit.diffusion.process import Process


def cfg(
    denoise: Denoise, process: Process, scale: float, null_label: int, *,
    interval: tuple[float, float] = (0.0, 1.0), channels: int | None = None,
) -> Denoise:
    """Classifier-free guidance (2207.12598): unconditional + scale * (conditional - unconditional).

    Args:
        denoise: what to guide.
        process: whose end is time 1 of the interval.
        scale: 1 is no guidance.
        null_label: class id that means "no class".
        interval: times, 0 = data and 1 = noise, between which to guide (2404.07724).
        channels: guide only the first so many, as the DiT release does with 3; all unless given. The other channels
            and the variance stay conditional.
    """
    low, high = interval

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        if scale == 1 or not low <= float(t) / process.end <= high:
            return denoise(x_t, t, y)
        both = denoise(torch.cat([x_t, x_t]), t, torch.cat([y, torch.full_like(y, null_label)]))
        x0, eps, out = (_extrapolate(p, scale, channels) for p in both[:3])
        return Prediction(x0, eps, out, None if both.var_fraction is None else both.var_fraction[: len(x_t)])

    return guided


def _extrapolate(both: Tensor, scale: float, channels: int | None) -> Tensor:
    conditional, unconditional = both.chunk(2)
    guided = unconditional + scale * (conditional - unconditional)
    return guided if channels is None else torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)
