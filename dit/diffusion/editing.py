"""Edits of images: wrappers of a denoiser or a sampler, so that no sampler knows of them.

x0 [B, C, h, w] are latents; a denoiser predicts x0 and eps with x_t = alpha x0 + sigma eps.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dit.diffusion.process import Denoise, Prediction, Process, add_noise, like, target, to_x0_eps
from dit.diffusion.samplers import Noise, Sampler


def keep_known(
    denoise: Denoise, process: Process, objective: str, known: Tensor, mask: Tensor
) -> Denoise:
    """Return a denoiser whose x0 is `known` where `mask` is 1: inpainting at every step.

    x0 := m known + (1 - m) x0, the projection of 2212.00490, algorithm 1, for a mask. What is known
    then moves on its own line of x_t = alpha x0 + sigma eps, and any sampler ends at `known` there.

    Args:
        denoise: the denoiser, guided or not.
        process: of `denoise`.
        objective: what `out` is: eps, x0 or v.
        known: [1 or B, C, h, w].
        mask: m from 0 to 1, [1 or B, 1, h, w].
    """

    def edited(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        prediction = denoise(x_t, t, y)
        x0 = known.expand_as(x_t)
        # the noise that leads from what is known to x_t
        _, eps = to_x0_eps(process, "x0", x0, x_t, t)
        out = target(process, objective, x0, eps, t)
        # given x_t, eps and v are affine in x0: all three are blended alike
        exact = Prediction(x0, eps, out, prediction.var_fraction)
        return _blend(prediction, exact, mask)

    return edited


def between_classes(denoise: Denoise, other: Tensor, weight: Tensor) -> Denoise:
    """Return a denoiser between the classes y and `other`: (1 - w) x0(y) + w x0(other).

    Eps is affine in x0, and the score in eps: this is the score of p(x_t | y)^(1 - w)
    p(x_t | other)^w, up to its normalisation (2206.01714, section 3).

    Args:
        denoise: the denoiser, guided or not; each class has its own guidance.
        other: class ids [B].
        weight: w [B], 0: the class y, 1: the other one.
    """

    def edited(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        # two calls, as a sample of either class makes them: the ends are the same to the bit
        return _blend(denoise(x_t, t, y), denoise(x_t, t, other), like(weight, x_t))

    return edited


def _blend(one: Prediction, other: Prediction, weight: Tensor) -> Prediction:
    def mixed(a: Tensor, b: Tensor) -> Tensor:
        return (1 - weight) * a + weight * b

    fraction = one.var_fraction
    if fraction is not None and other.var_fraction is not None:
        fraction = mixed(fraction, other.var_fraction)
    return Prediction(
        mixed(one.x0, other.x0), mixed(one.eps, other.eps), mixed(one.out, other.out), fraction
    )


def starting_at(sampler: Sampler, x0: Tensor) -> Sampler:
    """Return a sampler that starts at `x0` [1 or B, C, h, w], noised to the first of its times.

    This is SDEdit (2108.01073, algorithm 1). Its times are the last ones of a whole sample. At time
    0 the image stays as it is; from pure noise, where alpha is 0, nothing is left of it.
    """

    def started(
        denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
    ) -> Tensor:
        x_t = add_noise(process, x0.expand_as(x), x, times[0])
        return sampler(denoise, process, x_t, y, times, noise)

    return started


def between_noises(sampler: Sampler, start: Callable[[], Noise], weight: Tensor) -> Sampler:
    """Return a sampler whose noise lies on the arc from its own draws to those of another stream.

    The noise that starts a sample is interpolated as in 2010.02502, section 5.3, and that of each
    ancestral step alike.

    Args:
        sampler: the sampler.
        start: starts the other stream of draws [B, C, h, w].
        weight: [B], 0: the sampler's own noise, 1: the other one.
    """

    def between(
        denoise: Denoise, process: Process, x: Tensor, y: Tensor, times: Tensor, noise: Noise
    ) -> Tensor:
        other = start()

        def drawn() -> Tensor:
            return slerp(noise(), other(), weight)

        return sampler(denoise, process, slerp(x, other(), weight), y, times, drawn)

    return between


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Return the point at `weight` [B] on the arc from a to b, both [B, ...] (2010.02502, eq. 67).

    The arc keeps the length of vectors, and so the deviation of normal draws; a line does not.
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = F.cosine_similarity(flat_a, flat_b)
    angle = torch.acos(cosine.clamp(-1, 1))
    weight = weight.to(a.device).double()
    # sines of exactly 0 and a quotient of exactly 1 at the ends
    from_a = torch.sin((1 - weight) * angle) / torch.sin(angle)
    from_b = torch.sin(weight * angle) / torch.sin(angle)

    # the same draw, or its negative: no arc
    no_arc = torch.sin(angle) < 1e-6
    from_a = torch.where(no_arc, 1 - weight, from_a)
    from_b = torch.where(no_arc, weight, from_b)
    return like(from_a, a) * a + like(from_b, b) * b
