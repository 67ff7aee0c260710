"""Fréchet distance between Gaussians fitted to features, in float64.

A covariance is stored as a factor A with A^T A = covariance. Then tr sqrt(S1 S2) is the nuclear
norm of A B^T: a sum of singular values. Nothing is inverted and no root of a product is taken, so
ill-conditioned and rank-deficient covariances lose no digits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit.errors import UserError

BLOCK = 2048  # rows in float64 at a time: 34 MB for 2048 features
TOLERANCE = 1e-6  # of the largest entry; rounding to float32 moves eigenvalues by 6e-8 of it

Counted = tuple[int, Tensor, Tensor]
"""Number of rows, their mean [D] and covariance [D, D]."""


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and factor [R, D] of the covariance factor^T factor; float64, on the CPU."""

    mean: Tensor
    factor: Tensor

    @property
    def width(self) -> int:
        """Number of features D."""
        return len(self.mean)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)), the squared 2-Wasserstein distance.

    Raises:
        torch.linalg.LinAlgError: entries that are not finite.
    """
    # 1706.08500, Eq. 6
    shift = (a.mean - b.mean).square().sum()
    spread = a.factor.square().sum() + b.factor.square().sum()
    shared = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    # Round-off of equal Gaussians may be negative; NaN stays NaN.
    return float((shift + spread - 2 * shared).clamp(min=0))


def fit(values: Tensor, weights: Tensor | None = None) -> Gaussian:
    """Return the Gaussian with the moments of `values` [N, D], N >= 2.

    Args:
        weights: how often each row counts, [N]; once unless given.
    """
    weights = _each_once(values, weights)
    if int((weights > 0).sum()) > values.shape[1]:
        mean, covariance = moments(values, weights)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        return Gaussian(mean, _factor(eigenvalues, vectors))

    # With N <= D the centred rows are a factor: smaller than a covariance, and exact.
    mean = _mean(values, weights)
    rows = torch.cat(list(_centred(values, weights, mean)))
    return Gaussian(mean, rows / math.sqrt(weights.sum() - 1))


def from_moments(mean: np.ndarray | Tensor, covariance: np.ndarray | Tensor, name: str) -> Gaussian:
    """Return the Gaussian of published moments, mean [D] and covariance [D, D].

    Args:
        name: source of the moments, for messages.
    """
    mean = torch.as_tensor(mean, dtype=torch.float64)
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    _check_moments(mean, covariance, name)
    symmetric = (covariance + covariance.T) / 2
    eigenvalues, vectors = torch.linalg.eigh(symmetric)
    if not eigenvalues[0] >= -TOLERANCE * eigenvalues[-1]:
        raise _refused(
            f"the covariance of {name} has the eigenvalue {eigenvalues[0]:.3g} "
            f"beside {eigenvalues[-1]:.3g}",
            "none below 0",
        )
    return Gaussian(mean, _factor(eigenvalues, vectors))


def moments(values: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean [D] and covariance [D, D] of `values` [N, D], N >= 2, in float64.

    Args:
        weights: how often each row counts, [N]; once unless given. Their sum - 1 divides the
            covariance.
    """
    weights = _each_once(values, weights)
    mean = _mean(values, weights)
    width = values.shape[1]
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for rows in _centred(values, weights, mean):
        scatter.addmm_(rows.T, rows)
    return mean, scatter / (weights.sum() - 1)


def merge(one: Counted, other: Counted) -> Counted:
    """Return the moments of two sets together."""
    n, mean, covariance = one
    m, other_mean, other_covariance = other
    shift = other_mean - mean
    # Chan, Golub and LeVeque 1979, Eq. 2.1
    total = n + m
    between = torch.outer(shift, shift) * (n * m / total)
    within = (n - 1) * covariance + (m - 1) * other_covariance
    scatter = within + between
    return total, mean + shift * (m / total), scatter / (total - 1)


def _each_once(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return torch.ones(len(values), dtype=torch.float64)
    return weights.double()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(values.shape[1], dtype=torch.float64)
    for rows, counts in _counted(values, weights):
        total += counts @ rows
    return total / weights.sum()


def _centred(values: Tensor, weights: Tensor, mean: Tensor) -> Iterator[Tensor]:
    """Yield blocks of sqrt(weight) (row - mean), whose products add up to the scatter."""
    for rows, counts in _counted(values, weights):
        roots = counts.sqrt()
        yield rows.sub_(mean).mul_(roots[:, None])


def _counted(values: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of the rows with a weight above 0, in float64, and their weights."""
    blocks = zip(values.split(BLOCK), weights.split(BLOCK), strict=True)
    for rows, counts in blocks:
        counting = counts > 0
        yield rows[counting].double(), counts[counting]


def _factor(eigenvalues: Tensor, vectors: Tensor) -> Tensor:
    """Return the factor [D, D]; eigenvalues that round-off made negative count as 0."""
    roots = eigenvalues.clamp(min=0).sqrt()
    return (vectors * roots).T


def _check_moments(mean: Tensor, covariance: Tensor, name: str) -> None:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise _refused(
            f"mean {list(mean.shape)} and covariance {list(covariance.shape)} of {name}",
            "[D] and [D, D]",
        )
    for moment, given in (("mean", mean), ("covariance", covariance)):
        if not given.isfinite().all():
            raise _refused(f"NaN or infinity in the {moment} of {name}", "finite numbers")

    skew = (covariance - covariance.T).abs().max()
    largest = covariance.abs().max()
    if skew > TOLERANCE * largest:
        raise _refused(
            f"the covariance of {name} differs from its transpose by {skew:.3g}, "
            f"its largest entry is {largest:.3g}",
            "a symmetric matrix",
        )


def _refused(given: str, expected: str) -> UserError:
    return UserError(given, expected, "make the statistics again, in float64")
