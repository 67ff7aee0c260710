"""How far a Fréchet distance can be trusted: the noise of its samples, and the bias of their number."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.evaluation.metrics.frechet import Gaussian, fit, frechet

PARTS = 5  # the samples in 1, 2, ... 5 equal parts
LEAST = 4  # samples for each feature in the smallest part
SEED = 2020
BAR_DELAY = 2  # seconds before a bar shows
NORMAL_95 = 1.96  # standard deviations either side that hold 95% of a normal distribution


def bootstrap(values: Tensor, target: Gaussian, count: int) -> list[float]:
    """Fréchet distances of `count` sets drawn with replacement from `values` [N, D], N >= 2, to `target`.

    Which rows are drawn depends on N only, so that replicates of two sets of equal N can be compared in
    pairs: with common seeds of sampling, the noise that both share cancels.
    """
    generator = torch.Generator().manual_seed(SEED)
    replicates = []
    for _ in tqdm(range(count), desc="bootstrap", unit="set", delay=BAR_DELAY):
        drawn = torch.randint(len(values), (len(values),), generator=generator)
        weights = drawn.bincount(minlength=len(values)).double()
        replicates.append(frechet(fit(values, weights), target))
    return replicates


def interval(value: float, replicates: Sequence[float]) -> tuple[float, float]:
    """The 95% interval around a distance: 1.96 standard deviations of its replicates either side, not below 0.

    It is centred on the distance, and not made of the replicates' quantiles: a set drawn with replacement has fewer
    different rows, so each replicate is biased upwards once more, by about as much as N samples are biased already.
    It holds what other N samples of the same model would score on average; the bias of N itself, and the noise of the
    reference, are not in it.
    """
    reach = NORMAL_95 * statistics.stdev(replicates)
    return max(0.0, value - reach), value + reach


@dataclass(frozen=True)
class Extrapolation:
    """The distance at several numbers of samples, and at infinitely many.

    Args:
        sizes: numbers of samples, descending; `distances`: the mean distance of the parts of each size.
        limit: the line's value at infinitely many samples; `deviation`: the standard error of that. It says how
            straight the line is. All sizes share the samples' own noise, which does not show in it: see `bootstrap`.
        reason: why there is no limit.
    """

    sizes: list[int]
    distances: list[float]
    limit: float | None = None
    deviation: float | None = None
    reason: str | None = None


def extrapolate(values: Tensor, target: Gaussian) -> Extrapolation:
    """The Fréchet distance of infinitely many samples (FID-infinity, 1911.07023), by a line in 1/N.

    One random order of `values` [N, D] is cut into 1, 2, ... 5 equal parts; every size uses (nearly) all samples. The
    line is fitted to the mean distance of each size. The smallest part needs 4 samples for each feature: with fewer the
    bias bends away from 1/N, and the limit comes out too low (by a third at 1, by 5% at 2 samples a feature).
    """
    count, width = values.shape
    if count // PARTS < LEAST * width:
        needed = PARTS * LEAST * width
        return Extrapolation(
            [], [], reason=f"needs at least {needed} samples for {width} features, has {count}"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
    sizes = [count // parts for parts in range(1, PARTS + 1)]
    with tqdm(
        total=PARTS * (PARTS + 1) // 2, desc="extrapolation", unit="set", delay=BAR_DELAY
    ) as bar:

        def distance(rows: Tensor) -> float:
            bar.update()
            return frechet(fit(values[rows]), target)

        distances = [
            statistics.fmean(distance(rows) for rows in order[: size * parts].split(size))
            for parts, size in enumerate(sizes, start=1)
        ]
    limit, deviation = _intercept(1 / np.array(sizes), np.array(distances))
    return Extrapolation(sizes, distances, limit, deviation)


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Where the least-squares line through (x, y) meets 0, and the standard error of that."""
    centred = x - x.mean()
    slope = centred @ y / (centred @ centred)
    at_zero = y.mean() - slope * x.mean()
    variance = np.square(y - at_zero - slope * x).sum() / (len(x) - 2)
    return float(at_zero), float(
        np.sqrt(variance * (1 / len(x) + x.mean() ** 2 / (centred @ centred)))
    )
