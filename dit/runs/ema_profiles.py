"""Power-function averages of a trajectory, and any of them out of some others (2312.02696, sections 3.1 and 3.2).

After t steps such an average weighs step tau by p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), for 0 <= tau <= t. Its
length is the deviation of tau under p, relative to t (sigma_rel). Everything is float64.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def gamma_of(length: float) -> float:
    """The exponent of an average of this length, above 0 and below 12^-1/2, which is the mean of all steps.

    The length of gamma is `length_of`; solved for gamma that is a cubic, whose largest root counts: narrower averages
    have larger exponents.
    """
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def length_of(gamma: float) -> float:
    """Deviation of a Beta(gamma + 1, 1) distribution, which tau / t has."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def beta(gamma: float, step: int) -> float:
    """What an average keeps of itself in step number `step`, from 1: w <- beta w + (1 - beta) w_trained.

    So step k weighs (k^(gamma + 1) - (k - 1)^(gamma + 1)) / t^(gamma + 1): the integral of p from k - 1 to k.
    """
    return (1 - 1 / step) ** (gamma + 1)


def inner_products(
    steps: ArrayLike, gammas: ArrayLike, other_steps: ArrayLike, other_gammas: ArrayLike
) -> Array:
    """Integral of the product of two profiles, for arrays of them that broadcast."""
    t, g, u, h = np.broadcast_arrays(
        *(np.asarray(v, float) for v in (steps, gammas, other_steps, other_gammas))
    )
    of_longer = np.where(
        t < u, h, g
    )  # the exponent of the profile that goes on where the other has ended
    share = np.minimum(t, u) / np.maximum(t, u)
    return (g + 1) * (h + 1) / (g + h + 1) * share**of_longer / np.maximum(t, u)


def fit(
    steps: Iterable[int], lengths: Iterable[float], step: int, targets: Iterable[float]
) -> tuple[Array, Array]:
    """The combinations of known profiles that come nearest to others that end at `step`.

    Least squares of the distance between profiles, with coefficients that sum to 1: then an average of weights that do
    not change is those weights, whatever the fit.

    Args:
        steps: [n] at which the known profiles end.
        lengths: [n] of them.
        targets: [m] lengths of those wanted.

    Returns:
        Coefficients [n, m], and errors [m]: the norm of what is left of a profile, relative to that of the profile.
    """
    t, g, wanted = (
        np.array([*values]) for values in (steps, map(gamma_of, lengths), map(gamma_of, targets))
    )
    unit, norm = (
        inner_products(t, g, t, g) ** -0.5,
        inner_products(step, wanted, step, wanted) ** 0.5,
    )
    known = inner_products(t[:, None], g[:, None], t, g) * np.outer(
        unit, unit
    )  # of profiles of norm 1
    sought = inner_products(t[:, None], g[:, None], step, wanted) * np.outer(unit, 1 / norm)
    system = np.block(
        [[known, unit[:, None]], [unit, np.zeros(1)]]
    )  # with the multiplier of the sum
    solved = np.linalg.lstsq(system, np.vstack([sought, 1 / norm]), rcond=None)[0][:-1]
    left = 1 - 2 * (solved * sought).sum(0) + (solved * (known @ solved)).sum(0)
    return solved * np.outer(unit, norm), np.sqrt(left.clip(0))
