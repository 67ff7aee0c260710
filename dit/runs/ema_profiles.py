"""Power-function averages of a trajectory, and one as a sum of others (2312.02696, sections 3.1,
3.2).

After t steps such an average gives step tau the weight p(tau) = (gamma + 1) tau^gamma / t^(gamma +
1), for 0 <= tau <= t. Its length is the deviation of tau under p, relative to t (sigma_rel). All
float64.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def gamma_of(length: float) -> float:
    """Return the exponent of an average of this length, between 0 and 12^-1/2, the mean of all
    steps.

    Solves `length_of` for gamma: a cubic, of which the largest root counts, as narrower averages
    have larger exponents.
    """
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def length_of(gamma: float) -> float:
    """Return the deviation of a Beta(gamma + 1, 1) distribution, which tau / t has."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def beta(gamma: float, step: int) -> float:
    """Return what an average keeps of itself at a step, from 1: w <- beta w + (1 - beta) w_trained.

    Step k then has the weight (k^(gamma + 1) - (k - 1)^(gamma + 1)) / t^(gamma + 1), the integral
    of p from k - 1 to k.
    """
    return (1 - 1 / step) ** (gamma + 1)


def inner_products(
    steps: ArrayLike, gammas: ArrayLike, other_steps: ArrayLike, other_gammas: ArrayLike
) -> Array:
    """Return the integral of the product of two profiles, for arrays of them that broadcast."""
    arrays = (np.asarray(v, float) for v in (steps, gammas, other_steps, other_gammas))
    t, g, u, h = np.broadcast_arrays(*arrays)
    # 2312.02696, appendix C: the exponent is that of the profile that ends later
    exponent = np.where(t < u, h, g)
    first = np.minimum(t, u)
    last = np.maximum(t, u)
    ratio = first / last
    constant = (g + 1) * (h + 1) / (g + h + 1)
    return constant * ratio**exponent / last


def fit(
    steps: Iterable[int], lengths: Iterable[float], step: int, targets: Iterable[float]
) -> tuple[Array, Array]:
    """Return the sums of known profiles that are closest to others, which end at `step`.

    Least squares of the distance between profiles, with coefficients that sum to 1: an average of
    weights that do not change is then those weights, whatever the fit.

    Args:
        steps: [n] at which the known profiles end.
        lengths: [n] of the known profiles.
        targets: [m] lengths of the wanted profiles.

    Returns:
        Coefficients [n, m], and errors [m]: the residual's norm, relative to the profile's.
    """
    t = np.array([*steps])
    g = np.array([gamma_of(length) for length in lengths])
    wanted = np.array([gamma_of(length) for length in targets])

    # all profiles scaled to norm 1, so that the system is well conditioned
    scale = inner_products(t, g, t, g) ** -0.5
    norm = inner_products(step, wanted, step, wanted) ** 0.5
    rows = t[:, None], g[:, None]
    known = inner_products(*rows, t, g) * np.outer(scale, scale)
    right = inner_products(*rows, step, wanted) * np.outer(scale, 1 / norm)

    # the last row is the constraint on the sum, the last unknown its Lagrange multiplier
    system = np.block([[known, scale[:, None]], [scale, np.zeros(1)]])
    targets_and_sum = np.vstack([right, 1 / norm])
    solution, *_ = np.linalg.lstsq(system, targets_and_sum, rcond=None)
    solved = solution[:-1]

    # |target - fit|^2 of a target of norm 1
    product = (solved * right).sum(0)
    square = (solved * (known @ solved)).sum(0)
    residual = 1 - 2 * product + square
    coefficients = solved * np.outer(scale, norm)
    return coefficients, np.sqrt(residual.clip(0))
