"""Fréchet distance between Gaussians fitted to features, in float64 and by symmetric decompositions only.

A covariance is kept as a factor A with A^T A = covariance, for then tr sqrt(S1 S2) is the nuclear norm of A B^T: a sum
of singular values. Nothing is inverted and no root of a product is taken, so ill-conditioned and rank-deficient
covariances lose no digits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit.errors import UserError

BLOCK = 2048  # rows in float64 at a time: 34 MB for 2048 features
TOLERANCE = 1e-6  # of the largest entry: float32 rounds a matrix by 6e-8 of its norm, and its eigenvalues likewise


Counted = tuple[int, Tensor, Tensor]
"""Number of rows, their mean [D] and covariance [D, D]."""


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and a factor [R, D] of the covariance: factor^T factor; float64, on the CPU."""

    mean: Tensor
    factor: Tensor

    @property
    def width(self) -> int:
        """Number of features D."""
        return len(self.mean)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)), the squared 2-Wasserstein distance (1706.08500, Eq. 6).

    Raises:
        torch.linalg.LinAlgError: entries that are not finite.
    """
    shift = (a.mean - b.mean).square().sum()
    spread = a.factor.square().sum() + b.factor.square().sum()
    shared = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    return float(
        (shift + spread - 2 * shared).clamp(min=0)
    )  # round-off of equal ones may be below 0; NaN stays NaN


def fit(values: Tensor, weights: Tensor | None = None) -> Gaussian:
    """The Gaussian with the moments of `values` [N, D], N >= 2; see `moments` for `weights`.

    With N <= D the factor is the centred rows themselves, [N, D]: smaller than a covariance, and exact.
    """
    weights = _each_once(values, weights)
    if int((weights > 0).sum()) > values.shape[1]:
        mean, covariance = moments(values, weights)
        return Gaussian(mean, _factor(*torch.linalg.eigh(covariance)))
    mean = _mean(values, weights)
    rows = torch.cat(list(_centred(values, weights, mean)))
    return Gaussian(mean, rows / math.sqrt(weights.sum() - 1))


def from_moments(mean: np.ndarray | Tensor, covariance: np.ndarray | Tensor, name: str) -> Gaussian:
    """The Gaussian of published moments, mean [D] and covariance [D, D].

    Eigenvalues that are negative by round-off count as 0.

    Args:
        name: whose moments they are, for messages.

    Raises:
        UserError: shapes that do not fit, NaN or infinity, an asymmetric matrix, an eigenvalue below 0.
    """
    mean, covariance = (torch.as_tensor(given, dtype=torch.float64) for given in (mean, covariance))
    _check_moments(mean, covariance, name)
    eigenvalues, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if not eigenvalues[0] >= -TOLERANCE * eigenvalues[-1]:
        raise _refused(
            f"the covariance of {name} has the eigenvalue {eigenvalues[0]:.3g} beside {eigenvalues[-1]:.3g}",
            "none below 0",
        )
    return Gaussian(mean, _factor(eigenvalues, vectors))


def moments(values: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of `values` [N, D], N >= 2, in float64, in two passes over blocks of rows.

    Args:
        weights: how often each row counts, [N]; once unless given. The covariance divides by their sum - 1.
    """
    weights = _each_once(values, weights)
    mean = _mean(values, weights)
    scatter = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64)
    for rows in _centred(values, weights, mean):
        scatter.addmm_(rows.T, rows)
    return mean, scatter / (weights.sum() - 1)


def merge(one: Counted, other: Counted) -> Counted:
    """Moments of two sets together, from those of each (Chan, Golub and LeVeque 1979, Eq. 2.1)."""
    (n, mean, covariance), (m, other_mean, other_covariance) = one, other
    apart = other_mean - mean
    scatter = (
        (n - 1) * covariance
        + (m - 1) * other_covariance
        + torch.outer(apart, apart) * (n * m / (n + m))
    )
    return n + m, mean + apart * (m / (n + m)), scatter / (n + m - 1)


def _each_once(values: Tensor, weights: Tensor | None) -> Tensor:
    return torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(values.shape[1], dtype=torch.float64)
    for rows, counts in _counted(values, weights):
        total += counts @ rows
    return total / weights.sum()


def _centred(values: Tensor, weights: Tensor, mean: Tensor) -> Iterator[Tensor]:
    """Blocks of sqrt(weight) (row - mean), whose products add up to the scatter."""
    for rows, counts in _counted(values, weights):
        yield rows.sub_(mean).mul_(counts.sqrt()[:, None])


def _counted(values: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the rows that count, in float64, and how often each does."""
    for rows, counts in zip(values.split(BLOCK), weights.split(BLOCK), strict=True):
        counting = counts > 0
        yield rows[counting].double(), counts[counting]


def _factor(eigenvalues: Tensor, vectors: Tensor) -> Tensor:
    """[D, D] from an eigen-decomposition; what round-off left below 0 is 0."""
    return (vectors * eigenvalues.clamp(min=0).sqrt()).T


def _check_moments(mean: Tensor, covariance: Tensor, name: str) -> None:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise _refused(
            f"mean {list(mean.shape)} and covariance {list(covariance.shape)} of {name}",
            "[D] and [D, D]",
        )
    for moment, given in (("mean", mean), ("covariance", covariance)):
        if not given.isfinite().all():
            raise _refused(f"NaN or infinity in the {moment} of {name}", "finite numbers")
    skew, largest = (covariance - covariance.T).abs().max(), covariance.abs().max()
    if skew > TOLERANCE * largest:
        raise _refused(
            f"the covariance of {name} differs from its transpose by {skew:.3g}, its largest entry is "
            f"{largest:.3g}",
            "a symmetric matrix",
        )


def _refused(given: str, expected: str) -> UserError:
    return UserError(given, expected, "make the statistics again, in float64")
