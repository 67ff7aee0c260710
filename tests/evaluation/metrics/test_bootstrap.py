"""Intervals with the right coverage, and limits nearer the truth than distances."""

import statistics

import numpy as np
import pytest
import torch

from dit.evaluation.metrics.bootstrap import SEED, bootstrap, ci95, extrapolate
from dit.evaluation.metrics.frechet import Gaussian, fit, frechet

WIDTH = 6


def normal(count, width=WIDTH, seed=0, shift=0.0, scale=1.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * scale + shift


def identity(width):
    return Gaussian(torch.zeros(width, dtype=torch.float64), torch.eye(width, dtype=torch.float64))


TARGET = identity(WIDTH)


# -- bootstrap -------------------------------------------------------------------------------------


def test_replicates_are_of_rows_drawn_with_replacement():
    values = normal(50, shift=0.3)
    replicates = bootstrap(values, TARGET, 3)
    generator = torch.Generator().manual_seed(SEED)
    drawn = [values[torch.randint(50, (50,), generator=generator)] for _ in range(3)]
    assert replicates == pytest.approx([frechet(fit(rows), TARGET) for rows in drawn], rel=1e-9)
    assert len(set(replicates)) == 3


def test_two_sets_of_equal_number_share_the_rows_drawn():
    """Replicates of a set and of nearly the same one go up and down together."""
    values = normal(200, shift=0.3)
    one, other = (bootstrap(v, TARGET, 20) for v in (values, values + 0.01 * normal(200, seed=1)))
    assert np.corrcoef(one, other)[0, 1] > 0.99
    differences = [a - b for a, b in zip(one, other, strict=True)]
    assert statistics.stdev(differences) < statistics.stdev(one) / 10


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 1.0), (0.0, 1.5)])
def test_interval_covers_the_mean_score_of_other_samples(shift, scale):
    sets = [normal(300, seed=seed, shift=shift, scale=scale) for seed in range(100)]
    values = [frechet(fit(v), TARGET) for v in sets]
    expected = statistics.fmean(values)
    intervals = [
        ci95(value, bootstrap(v, TARGET, 30)) for v, value in zip(sets, values, strict=True)
    ]
    assert 0.88 <= statistics.fmean(low <= expected <= high for low, high in intervals) <= 0.99


def test_replicates_are_biased_and_the_interval_is_not_centred_on_them():
    values = normal(60, shift=0.1)
    value, replicates = frechet(fit(values), TARGET), bootstrap(values, TARGET, 50)
    assert statistics.fmean(replicates) > value * 1.3
    low, high = ci95(value, replicates)
    assert low <= value <= high
    assert high - value == pytest.approx(1.96 * statistics.stdev(replicates))


def test_an_interval_is_not_negative():
    assert ci95(0.1, [0.0, 1.0, 2.0]) == (0.0, pytest.approx(2.06))


# -- FID-infinity ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "count"), [(24, 1500), (40, 800)])
def test_limit_is_nearer_the_truth_than_the_distance(width, count):
    """Samples of mean 0.2 and deviation 1.1 in every feature: the distance is known."""
    truth = width * (0.2**2 + 0.1**2)
    target = identity(width)
    sets = [normal(count, width, seed=seed, shift=0.2, scale=1.1) for seed in range(20)]
    plain = np.array([frechet(fit(values), target) for values in sets])
    limit = np.array([extrapolate(values, target).limit for values in sets])
    assert (np.abs(limit - truth) < np.abs(plain - truth)).mean() >= 0.7
    assert abs(limit.mean() - truth) < abs(plain.mean() - truth) / 4


def test_sizes_are_parts_of_all_samples():
    values = normal(153)
    found = extrapolate(values, TARGET)
    assert found.sizes == [153, 76, 51, 38, 30]
    assert found.distances[0] == pytest.approx(frechet(fit(values), TARGET), rel=1e-9)
    assert found.distances == sorted(found.distances)
    assert found.limit < found.distances[0]
    assert found.reason is None


def test_limit_is_the_line_through_the_distances():
    found = extrapolate(normal(500, shift=0.2), TARGET)
    x = 1 / np.array(found.sizes)
    (slope, at_zero), covariance = np.polyfit(x, found.distances, 1, cov=True)
    assert found.limit == pytest.approx(at_zero, rel=1e-9)
    assert found.deviation == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-6)
    assert slope > 0


def test_too_few_samples_have_no_limit():
    least = 20 * WIDTH
    found = extrapolate(normal(least - 1), TARGET)
    assert (found.sizes, found.limit, found.deviation) == ([], None, None)
    assert found.reason == f"needs at least {least} samples for {WIDTH} features, has {least - 1}"
    assert extrapolate(normal(least), TARGET).limit is not None
