"""The Fréchet distance: against two other ways to compute it, and where it is known."""

import math

import numpy as np
import pytest
import torch

from dit.errors import UserError
from dit.evaluation.metrics import frechet as module
from dit.evaluation.metrics.frechet import Gaussian, fit, frechet, from_moments, moments

WIDTH = 12


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(count, width=WIDTH, seed=0):
    """Features with a covariance that is not diagonal, and a mean."""
    return normal(count, width, seed=seed) @ normal(width, width, seed=seed + 100) + normal(
        width, seed=seed + 200
    )


def with_covariance(eigenvalues, seed=0):
    """A Gaussian with these eigenvalues in directions of the seed, and its covariance."""
    vectors, _ = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))
    covariance = (vectors * torch.as_tensor(eigenvalues)) @ vectors.T
    covariance = (covariance + covariance.T) / 2
    return from_moments(torch.zeros(len(eigenvalues)), covariance, "test"), covariance


def statistics(values):
    return {"mu": values.mean(0).numpy(), "sigma": np.cov(values.numpy(), rowvar=False)}


def theirs(one, other):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID]


def by_sqrtm(one, other):
    from scipy.linalg import sqrtm

    root = sqrtm(one["sigma"] @ other["sigma"]).real
    shift = np.square(one["mu"] - other["mu"]).sum()
    return shift + np.trace(one["sigma"] + other["sigma"] - 2 * root)


def test_equals_torch_fidelity_and_sqrtm():
    a, b = mixed(500), mixed(400, seed=1)
    ours = frechet(fit(a), fit(b))
    assert ours == pytest.approx(theirs(statistics(a), statistics(b)), rel=1e-9)
    assert ours == pytest.approx(by_sqrtm(statistics(a), statistics(b)), rel=1e-9)


def test_is_the_same_from_published_moments():
    a, b = mixed(500), mixed(400, seed=1)
    published = from_moments(statistics(b)["mu"], statistics(b)["sigma"], "file")
    assert published.width == WIDTH
    assert frechet(fit(a), published) == pytest.approx(frechet(fit(a), fit(b)), rel=1e-12)


@pytest.mark.portable
def test_ill_conditioned_covariances_keep_their_digits():
    """Eigenvalues over 12 decades; where both have the same directions the distance is known."""
    one, other = np.logspace(-12, 0, WIDTH), np.logspace(-12, 0, WIDTH)[::-1].copy()
    (a, _), (b, _) = with_covariance(one), with_covariance(other)
    known = np.square(np.sqrt(one) - np.sqrt(other)).sum()
    assert frechet(a, b) == pytest.approx(known, rel=1e-9)


@pytest.mark.portable
def test_ill_conditioned_covariances_equal_the_other_ways_as_far_as_those_go():
    (a, s), (b, t) = (
        with_covariance(np.logspace(-12, 0, WIDTH)),
        with_covariance(np.logspace(-12, 0, WIDTH), seed=1),
    )
    one, other = ({"mu": np.zeros(WIDTH), "sigma": covariance.numpy()} for covariance in (s, t))
    assert frechet(a, b) == pytest.approx(theirs(one, other), rel=1e-7)
    assert frechet(a, b) == pytest.approx(by_sqrtm(one, other), rel=1e-6)


@pytest.mark.portable
@pytest.mark.parametrize(("few", "many"), [(5, 300), (5, 7), (WIDTH, WIDTH + 1)])
def test_fewer_images_than_features(few, many):
    a, b = mixed(few), mixed(many, seed=1)
    assert fit(a).factor.shape == (few, WIDTH)
    assert frechet(fit(a), fit(b)) == pytest.approx(theirs(statistics(a), statistics(b)), rel=1e-6)
    assert frechet(fit(a), fit(b)) == pytest.approx(
        by_sqrtm(statistics(a), statistics(b)), rel=1e-6
    )


@pytest.mark.portable
def test_rows_and_covariance_are_the_same_gaussian():
    """The small factor of few images against their covariance, whose eigenvalues of 0 are known to round-off only."""
    few, other = mixed(5), fit(mixed(300, seed=1))
    whole = from_moments(*moments(few), "few")
    assert whole.factor.shape == (WIDTH, WIDTH)
    assert frechet(fit(few), other) == pytest.approx(frechet(whole, other), rel=1e-7)


@pytest.mark.portable
@pytest.mark.parametrize("count", [3, WIDTH, WIDTH + 1, 500])
def test_distance_to_itself_is_zero(count):
    one = fit(mixed(count))
    assert 0 <= frechet(one, one) < 1e-12 * one.factor.square().sum()
    ill, covariance = with_covariance(np.logspace(-12, 0, WIDTH))
    assert frechet(ill, ill) < 1e-12 * covariance.trace()


def test_is_symmetric():
    a, b = fit(mixed(100)), fit(mixed(5, seed=1))
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)


def test_diagonal_covariances_give_the_formula():
    """Squared differences of means and of deviations, feature by feature."""
    means, deviations = normal(2, WIDTH), normal(2, WIDTH, seed=1).abs()
    a, b = (
        Gaussian(mean, deviation.diag()) for mean, deviation in zip(means, deviations, strict=True)
    )
    known = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet(a, b) == pytest.approx(known.item(), rel=1e-12)


# -- moments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_moments_in_blocks_equal_numpy(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    values = mixed(100).float()
    mean, covariance = moments(values)
    expected = np.cov(values.double().numpy(), rowvar=False)
    assert np.abs(mean.numpy() - values.double().mean(0).numpy()).max() < 1e-13
    assert np.abs(covariance.numpy() - expected).max() < 1e-13 * np.abs(expected).max()


def test_a_large_mean_does_not_cost_digits():
    values = mixed(200)
    there, back = moments(values + 1e3)[1], moments(values)[1]
    assert (there - back).abs().max() < 1e-12 * back.abs().max()


@pytest.mark.parametrize("width", [4, 60])
def test_weights_are_repetitions(width):
    values, weights = mixed(50, width), torch.arange(50) % 3
    repeated = values.repeat_interleave(weights, dim=0)
    assert (moments(values, weights)[0] - moments(repeated)[0]).abs().max() < 1e-13
    expected = moments(repeated)[1]
    assert (moments(values, weights)[1] - expected).abs().max() < 1e-13 * expected.abs().max()
    other = fit(mixed(300, width, seed=1))
    assert frechet(fit(values, weights), other) == pytest.approx(
        frechet(fit(repeated), other), rel=1e-10
    )


def test_values_are_left_as_they_are():
    values = mixed(50)
    before = values.clone()
    fit(values)
    assert torch.equal(values, before)


# -- published moments -------------------------------------------------------------------------------------------


@pytest.mark.portable
def test_negative_round_off_counts_as_zero():
    """A covariance rounded to float32 has small negative eigenvalues."""
    values, other = mixed(6), fit(mixed(300, seed=1))
    mean, covariance = moments(values)
    rounded = covariance.float().double()
    assert torch.linalg.eigvalsh(rounded)[0] < 0
    assert frechet(from_moments(mean, rounded, "file"), other) == pytest.approx(
        frechet(fit(values), other), rel=1e-4
    )


def test_a_covariance_of_zero_is_one():
    assert frechet(from_moments(np.zeros(3), np.zeros((3, 3)), "file"), fit(torch.eye(3) * 0)) == 0


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (
            np.zeros(3),
            np.diag([1.0, 1.0, -0.1]),
            "covariance of file has the eigenvalue -0.1 beside 1;",
        ),
        (np.zeros(3), -np.eye(3), "the eigenvalue -1 beside -1"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.4, 1.0]]), "differs from its transpose by 0.1"),
        (np.array([0.0, math.nan]), np.eye(2), "NaN or infinity in the mean of file"),
        (
            np.zeros(2),
            np.array([[math.inf, 0], [0, 1.0]]),
            "NaN or infinity in the covariance of file",
        ),
        (
            np.zeros(3),
            np.eye(2),
            r"mean \[3\] and covariance \[2, 2\] of file; expected \[D\] and \[D, D\]",
        ),
        (np.zeros((1, 2)), np.eye(2), r"mean \[1, 2\]"),
    ],
)
def test_moments_of_no_gaussian_are_named(mean, covariance, message):
    with pytest.raises(UserError, match=message):
        from_moments(mean, covariance, "file")


def test_nan_is_not_hidden():
    good = fit(mixed(50))
    with pytest.raises(torch.linalg.LinAlgError):
        frechet(Gaussian(good.mean, good.factor * math.nan), good)
    assert math.isnan(frechet(Gaussian(good.mean * math.nan, good.factor), good))
