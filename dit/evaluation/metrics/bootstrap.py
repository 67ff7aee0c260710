"""Uncertainty of a Fréchet distance: the noise of its samples, and the bias of their number."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.evaluation.metrics.frechet import Gaussian, fit, frechet

PARTS = 5  # most parts that the samples are split into
LEAST = 4  # samples per feature in the smallest part
SEED = 2020
BAR_DELAY = 2  # seconds before a progress bar is shown
NORMAL_95 = 1.96  # standard deviations either side that hold 95% of a normal distribution


def bootstrap(values: Tensor, target: Gaussian, count: int) -> list[float]:
    """Return Fréchet distances to `target` of `count` resamples of `values` [N, D], N >= 2.

    The rows drawn depend on N only, so that replicates of two sets of equal N can be compared in
    pairs: with common seeds of sampling, the noise that both share cancels.
    """
    generator = torch.Generator().manual_seed(SEED)
    size = len(values)
    replicates = []
    for _ in tqdm(range(count), desc="bootstrap", unit="set", delay=BAR_DELAY):
        drawn = torch.randint(size, (size,), generator=generator)
        weights = drawn.bincount(minlength=size).double()
        resampled = fit(values, weights)
        replicates.append(frechet(resampled, target))
    return replicates


def ci95(value: float, replicates: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a distance, from the deviation of its bootstrap replicates.

    It covers the mean score of other N samples of the same model. It does not cover the bias of N
    samples, nor the noise of the reference.
    """
    # Not the quantiles of the replicates: a resample has fewer different rows, so that each
    # replicate is biased upwards once more, by about as much as N samples are biased already.
    half_width = NORMAL_95 * statistics.stdev(replicates)
    return max(0.0, value - half_width), value + half_width


def interval(values: Tensor, target: Gaussian, value: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of the distance `value` of `values` [N, D], by `count` resamples."""
    return ci95(value, bootstrap(values, target, count))


@dataclass(frozen=True)
class Extrapolation:
    """The distance at several numbers of samples, and at infinitely many.

    Args:
        sizes: numbers of samples, descending; `distances`: the mean distance of parts of each size.
        limit: the line's value at infinitely many samples; `deviation`: its standard error, from
            the residuals of the line. Noise that all sizes share is not in it: see `bootstrap`.
        reason: why there is no limit.
    """

    sizes: list[int]
    distances: list[float]
    limit: float | None = None
    deviation: float | None = None
    reason: str | None = None


def extrapolate(values: Tensor, target: Gaussian) -> Extrapolation:
    """Extrapolate to infinitely many samples (FID-infinity, 1911.07023), by a line in 1/N.

    One random order of `values` [N, D] is split into 1, 2, ... 5 equal parts, so that every size
    uses nearly all samples. The line is fitted to the mean distance of each size.
    """
    count, width = values.shape
    # With fewer samples per feature the bias is not linear in 1/N, and the limit is too low: by a
    # third at 1 sample, by 5% at 2.
    needed = PARTS * LEAST * width
    if count < needed:
        reason = f"needs at least {needed} samples for {width} features, has {count}"
        return Extrapolation([], [], reason=reason)

    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(count, generator=generator)
    sizes = [count // parts for parts in range(1, PARTS + 1)]
    distances = []
    bar = tqdm(sizes, desc="extrapolation", unit="size", delay=BAR_DELAY)
    for count_of_parts, size in enumerate(bar, start=1):
        parts = order[: size * count_of_parts].split(size)
        of_parts = [frechet(fit(values[part]), target) for part in parts]
        distances.append(statistics.fmean(of_parts))

    limit, deviation = _intercept(1 / np.array(sizes), np.array(distances))
    return Extrapolation(sizes, distances, limit, deviation)


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the value of the least-squares line through (x, y) at 0, and its standard error."""
    mean = x.mean()
    centred = x - mean
    scatter = centred @ centred
    slope = centred @ y / scatter
    at_zero = y.mean() - slope * mean

    residuals = y - at_zero - slope * x
    variance = np.square(residuals).sum() / (len(x) - 2)
    factor = 1 / len(x) + mean**2 / scatter
    error = np.sqrt(variance * factor)
    return float(at_zero), float(error)
