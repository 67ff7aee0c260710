"""Nearest neighbours among features, in blocks: no matrix of all distances exists at any time.

Distances are float64, |x|^2 + |y|^2 - 2xy of centred points, and what round-off can not tell apart counts as equal:
copies are at distance 0, and a copy of a point lies in every ball that the point lies in or on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # points a side: 8 MB of distances
NEIGHBOURS = 3  # of precision and recall, as ADM has it (1904.06991, 2105.05233)
DENSITY_NEIGHBOURS = 5  # of density and coverage (2002.09797)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Manifold:
    """How samples lie among real images, whose surroundings are balls that reach to the k-th nearest real image.

    Args:
        precision: share of samples in the ball of some real image; `recall`: share of real images in that of some
            sample (1904.06991, Eq. 1-2), k = 3.
        density: how many balls of real images a sample lies in, divided by k (2002.09797, Eq. 4); may exceed 1.
        coverage: share of real images with a sample in their ball (Eq. 5), k = 5.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(samples: Tensor, reference: Tensor, device: torch.device = CPU) -> Manifold:
    """All four of `samples` [N, D] and `reference` [M, D], from one pass over the distances between them.

    A set needs more points than neighbours. Balls hold their border, so that a set among itself has precision, recall
    and coverage 1.
    """
    centre = _centre(reference)
    ours, real = _Points(samples, centre, device), _Points(reference, centre, device)
    slack = _slack(samples.shape[1])
    reach = _nearest_within(ours, NEIGHBOURS)[:, -1:]
    balls = _nearest_within(real, DENSITY_NEIGHBOURS)
    tight, wide = balls[:, NEIGHBOURS - 1], balls[:, DENSITY_NEIGHBOURS - 1]
    precise, recalled, covered = (
        torch.zeros(n, dtype=torch.bool, device=device)
        for n in (len(samples), len(reference), len(reference))
    )
    inside = torch.zeros((), dtype=torch.int64, device=device)
    for row in ours:
        for column in real:
            squared = _squared(row, column, slack)
            precise[row.part] |= (squared <= tight[column.part]).any(dim=1)
            recalled[column.part] |= (squared <= reach[row.part]).any(dim=0)
            within = squared <= wide[column.part]
            covered[column.part] |= within.any(dim=0)
            inside += within.sum()
    density = int(inside) / (DENSITY_NEIGHBOURS * len(samples))
    return Manifold(_share(precise), _share(recalled), density, _share(covered))


def nearest(
    queries: Tensor, points: Tensor, device: torch.device = CPU, skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Distance [N] (float64) and index [N] of the nearest of `points` [M, D] to each of `queries` [N, D].

    Args:
        skip: [N] int64, the point that does not count for each query: itself, where queries are among the points.
            Where no other point is left, the distance is infinite.
    """
    centre = _centre(points)
    near, real = _Points(queries, centre, device), _Points(points, centre, device)
    slack = _slack(points.shape[1])
    least = near.norms.new_full((len(queries),), math.inf)
    index = torch.zeros(len(queries), dtype=torch.int64, device=device)
    for row in near:
        for column in real:
            squared = _squared(row, column, slack)
            if skip is not None:
                _leave_out(squared, skip[row.part].to(device) - column.part.start)
            found, where = squared.min(dim=1)
            closer = found < least[row.part]
            least[row.part] = torch.where(closer, found, least[row.part])
            index[row.part] = torch.where(closer, where + column.part.start, index[row.part])
    return least.sqrt().cpu(), index.cpu()


def _leave_out(squared: Tensor, columns: Tensor) -> None:
    """Make one column of each row infinite, where it is in the block."""
    rows = ((columns >= 0) & (columns < squared.shape[1])).nonzero().flatten()
    squared[rows, columns[rows]] = math.inf


class _Block(NamedTuple):
    part: slice  # which points
    points: Tensor  # [B, D], centred
    norms: Tensor  # [B], squared


class _Points:
    """Points in blocks of float64; made one at a time, for all of them would be a large copy."""

    def __init__(self, points: Tensor, centre: Tensor, device: torch.device):
        self.points, self.centre, self.device = points, centre.to(device), device
        memory = torch.empty(BLOCK, points.shape[1], dtype=torch.float64, device=device)
        self.norms = torch.cat(
            [self._load(part, memory).square_().sum(dim=1) for part in self._parts(0)]
        )

    def __iter__(self) -> Iterator[_Block]:
        return self.since(0)

    def since(self, start: int) -> Iterator[_Block]:
        """The blocks from point `start` on, in the same memory one after the other: new memory would pile up."""
        memory = torch.empty(BLOCK, self.points.shape[1], dtype=torch.float64, device=self.device)
        for part in self._parts(start):
            yield _Block(part, self._load(part, memory), self.norms[part])

    def _parts(self, start: int) -> Iterator[slice]:
        for first in range(start, len(self.points), BLOCK):
            yield slice(first, min(first + BLOCK, len(self.points)))

    def _load(self, part: slice, memory: Tensor) -> Tensor:
        return memory[: part.stop - part.start].copy_(self.points[part]).sub_(self.centre)


def _centre(points: Tensor) -> Tensor:
    """Somewhere in the middle [D]: distances are the same from anywhere, round-off is smallest from there."""
    return points[:BLOCK].double().mean(dim=0)


def _squared(x: _Block, y: _Block, slack: float = 0.0) -> Tensor:
    """Squared distances [Bx, By], less `slack` parts of |x|^2 + |y|^2, and not below 0."""
    kept = 1 - slack
    products = torch.addmm(y.norms * kept, x.points, y.points.T, alpha=-2)
    return products.add_((x.norms * kept)[:, None]).clamp_(min=0)


def _slack(width: int) -> float:
    """Twice the bound of round-off in a squared distance of [width] points: what lies on a ball's border is inside."""
    return 2 * (width + 4) * torch.finfo(torch.float64).eps


def _nearest_within(points: _Points, k: int) -> Tensor:
    """Squared distances [N, k] to the k nearest others, ascending; each pair of blocks is computed once."""
    least = points.norms.new_full((len(points.norms), k), math.inf)
    for row in points:
        for column in points.since(row.part.start):
            squared = _squared(row, column)
            if row.part == column.part:
                squared.fill_diagonal_(math.inf)
            else:
                least[column.part] = _least(least[column.part], squared.T)
            least[row.part] = _least(least[row.part], squared)
    return least


def _least(so_far: Tensor, squared: Tensor) -> Tensor:
    """The k least of [B, k] and [B, C] in each row, ascending."""
    k = so_far.shape[1]
    found = squared.topk(min(k, squared.shape[1]), dim=1, largest=False).values
    return torch.cat([so_far, found], dim=1).topk(k, dim=1, largest=False, sorted=True).values


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()
