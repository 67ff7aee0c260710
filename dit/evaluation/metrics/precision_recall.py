"""Precision, recall, density, coverage and nearest neighbours, in blocks of distances.

Distances are float64, |x|^2 + |y|^2 - 2xy of centred points. Differences below round-off count as
equal: copies are at distance 0, and a copy of a point lies in every ball that the point lies in.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dit.distributed.device import with_float64

BLOCK = 1024  # points a side: 8 MB of distances
NEIGHBOURS = 3  # of precision and recall, as in ADM (1904.06991, 2105.05233)
DENSITY_NEIGHBOURS = 5  # of density and coverage (2002.09797)


@dataclass(frozen=True)
class Manifold:
    """Overlap of samples and real images. Each image has a ball that reaches to its k-th neighbour.

    Args:
        precision: share of samples in the ball of some real image; `recall`: share of real images
            in that of some sample (1904.06991, Eq. 1-2), k = 3.
        density: mean number of balls of real images that a sample lies in, divided by k
            (2002.09797, Eq. 4); may exceed 1.
        coverage: share of real images with a sample in their ball (Eq. 5), k = 5.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(samples: Tensor, reference: Tensor, device: torch.device) -> Manifold:
    """Compare `samples` [N, D] with `reference` [M, D]; each set needs more than 3 points."""
    device = with_float64(device)
    centre = _centre(reference)
    ours = _Points(samples, centre, device)
    real = _Points(reference, centre, device)
    slack = _slack(samples.shape[1])
    sample_radius = _nearest_within(ours, NEIGHBOURS)[:, -1:]
    real_radii = _nearest_within(real, DENSITY_NEIGHBOURS)
    near = real_radii[:, NEIGHBOURS - 1]
    far = real_radii[:, DENSITY_NEIGHBOURS - 1]

    precise = torch.zeros(len(samples), dtype=torch.bool, device=device)
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=device)
    covered = torch.zeros(len(reference), dtype=torch.bool, device=device)
    inside = torch.zeros((), dtype=torch.int64, device=device)
    for row in ours:
        for column in real:
            # Rows are samples, columns real images.
            squared = _squared(row, column, slack)
            precise[row.part] |= (squared <= near[column.part]).any(dim=1)
            recalled[column.part] |= (squared <= sample_radius[row.part]).any(dim=0)
            within = squared <= far[column.part]
            covered[column.part] |= within.any(dim=0)
            inside += within.sum()

    return Manifold(
        precision=precise.double().mean().item(),
        recall=recalled.double().mean().item(),
        density=int(inside) / (DENSITY_NEIGHBOURS * len(samples)),
        coverage=covered.double().mean().item(),
    )


def nearest(
    queries: Tensor, points: Tensor, device: torch.device, skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return distance [N] (float64) and index [N] of the nearest of `points` [M, D] to each query.

    Args:
        queries: [N, D].
        skip: [N] int64, the point to ignore for each query: itself, where queries are among the
            points. The distance is infinite if no other point is left.
    """
    device = with_float64(device)
    centre = _centre(points)
    near = _Points(queries, centre, device)
    real = _Points(points, centre, device)
    slack = _slack(points.shape[1])
    least = near.full()
    index = torch.zeros(len(queries), dtype=torch.int64, device=device)
    for row in near:
        for column in real:
            squared = _squared(row, column, slack)
            if skip is not None:
                # Columns of this block, where they lie in it.
                ignored = skip[row.part].to(device) - column.part.start
                inside = (ignored >= 0) & (ignored < squared.shape[1])
                rows = inside.nonzero().flatten()
                squared[rows, ignored[rows]] = math.inf

            values, columns = squared.min(dim=1)
            columns += column.part.start
            before = least[row.part]
            closer = values < before
            least[row.part] = torch.where(closer, values, before)
            index[row.part] = torch.where(closer, columns, index[row.part])
    return least.sqrt().cpu(), index.cpu()


class _Block(NamedTuple):
    part: slice  # of all points
    points: Tensor  # [B, D], centred
    norms: Tensor  # [B], squared


@dataclass(frozen=True)
class _Points:
    """Points in blocks of float64, converted one by one: a copy of all of them could be large."""

    points: Tensor
    centre: Tensor
    device: torch.device

    def __iter__(self) -> Iterator[_Block]:
        # All blocks share their memory: new memory for each would pile up.
        shape = (BLOCK, self.points.shape[1])
        memory = torch.empty(shape, dtype=torch.float64, device=self.device)
        centre = self.centre.to(self.device)
        for first in range(0, len(self.points), BLOCK):
            part = slice(first, min(first + BLOCK, len(self.points)))
            points = memory[: part.stop - first]
            points.copy_(self.points[part]).sub_(centre)
            norms = points.square().sum(dim=1)
            yield _Block(part, points, norms)

    def full(self, *shape: int) -> Tensor:
        """Return infinite distances of all points, [N, *shape]."""
        shape = (len(self.points), *shape)
        return torch.full(shape, math.inf, dtype=torch.float64, device=self.device)


def _centre(points: Tensor) -> Tensor:
    """Return a central point [D]: any origin gives the same distances, this one least round-off."""
    return points[:BLOCK].double().mean(dim=0)


def _squared(x: _Block, y: _Block, slack: float = 0.0) -> Tensor:
    """Return squared distances [Bx, By], less `slack` (|x|^2 + |y|^2), and not below 0."""
    kept = 1 - slack
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y
    products = torch.addmm(y.norms * kept, x.points, y.points.T, alpha=-2)
    norms = x.norms * kept
    return products.add_(norms[:, None]).clamp_(min=0)


def _slack(width: int) -> float:
    """Return twice the bound of round-off of `_squared`: points on a ball's border are inside."""
    return 2 * (width + 4) * torch.finfo(torch.float64).eps


def _nearest_within(points: _Points, k: int) -> Tensor:
    """Return squared distances [N, k] to the k nearest other points, ascending."""
    least = points.full(k)
    for row in points:
        for column in points:
            squared = _squared(row, column)
            if row.part == column.part:
                squared.fill_diagonal_(math.inf)
            in_block = min(k, squared.shape[1])
            closest = squared.topk(in_block, dim=1, largest=False).values
            both = torch.cat([least[row.part], closest], dim=1)
            least[row.part] = both.topk(k, dim=1, largest=False, sorted=True).values
    return least
