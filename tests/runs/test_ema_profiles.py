"""Power-function averages: lengths and exponents, recursion and closed form, errors of fits."""

import numpy as np
import pytest
from helpers.averages import step_weights

from dit.runs.ema_profiles import beta, fit, gamma_of, inner_products, length_of

LENGTHS = (0.01, 0.05, 0.1, 0.2, 0.288)


@pytest.mark.parametrize("length", LENGTHS)
def test_length_and_exponent_are_inverse(length):
    assert length_of(gamma_of(length)) == pytest.approx(length, rel=1e-9)


def test_exponents_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.1) == pytest.approx(6.94, abs=0.01)
    assert length_of(0) == pytest.approx(12**-0.5)


@pytest.mark.parametrize("length", LENGTHS)
def test_length_is_the_deviation_of_the_profile(length):
    gamma, tau = gamma_of(length), (np.arange(100_000) + 0.5) / 100_000
    p = (gamma + 1) * tau**gamma / len(tau)
    assert p.sum() == pytest.approx(1, rel=1e-6)
    assert ((tau - p @ tau) ** 2 @ p) ** 0.5 == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_recursion_agrees_with_the_closed_form(length):
    gamma, values = gamma_of(length), np.random.default_rng(0).normal(size=300)
    average = np.nan  # the first step keeps nothing
    for step, value in enumerate(values, start=1):
        average = value + (beta(gamma, step) * (average - value) if step > 1 else 0)
    assert beta(gamma, 1) == 0
    assert average == pytest.approx(step_weights(gamma, 300, 300) @ values, rel=1e-12)
    assert step_weights(gamma, 300, 300).sum() == pytest.approx(1)


@pytest.mark.parametrize(("t", "u"), [(1.0, 1.0), (0.4, 1.0), (7.0, 2.0)])
@pytest.mark.parametrize(("g", "h"), [(0.0, 0.0), (17.0, 7.0), (2.5, 30.0)])
def test_inner_products_are_integrals(t, u, g, h):
    end, n = min(t, u), 200_000
    tau = (np.arange(n) + 0.5) * end / n
    product = (g + 1) * (tau / t) ** g / t * (h + 1) * (tau / u) ** h / u
    assert inner_products(t, g, u, h) == pytest.approx(product.sum() * end / n, rel=1e-6)
    assert inner_products(t, g, u, h) == inner_products(u, h, t, g)


def every(n: int, steps: int = 960) -> tuple[list[int], list[float]]:
    """Ends and lengths of n snapshots of two averages, evenly spread."""
    ends = [steps * i // n for i in range(1, n + 1)]
    return [end for end in ends for _ in range(2)], [0.05, 0.1] * n


def test_known_profiles_are_reproduced():
    known = every(8)
    coefficients, errors = fit(*known, 960, [0.1, 0.05])
    assert errors.max() < 1e-7
    assert np.abs(coefficients - np.eye(16)[:, [15, 14]]).max() < 1e-9


def test_more_snapshots_fit_better_and_two_lengths_better_than_one():
    wanted = [0.02, 0.03, 0.07, 0.15, 0.25]
    errors = [fit(*every(n), 960, wanted)[1] for n in (8, 16, 32, 64)]
    assert all((more < fewer).all() for fewer, more in zip(errors, errors[1:], strict=False))
    assert errors[2] == pytest.approx([0.040, 0.011, 0.00098, 0.0023, 0.034], rel=0.03)
    one = fit(range(30, 961, 30), [0.1] * 32, 960, wanted)[1]
    assert (one > 2 * errors[2]).all()


@pytest.mark.parametrize("target", [0.02, 0.04, 0.07, 0.15, 0.25])
def test_error_is_that_of_the_profiles_and_bounds_that_of_weights(target):
    """By Cauchy and Schwarz, for any trajectory: the coefficients sum to 1."""
    (ends, lengths), steps = every(16), 960
    (coefficients,), (error,) = (part.T for part in fit(ends, lengths, steps, [target]))
    assert coefficients.sum() == pytest.approx(1, abs=1e-12)
    pairs = zip(ends, lengths, strict=True)
    known = np.array([step_weights(gamma_of(length), end, steps) for end, length in pairs])
    wanted = step_weights(gamma_of(target), steps, steps)
    left = coefficients @ known - wanted
    norm = inner_products(steps, gamma_of(target), steps, gamma_of(target)) ** 0.5
    # 2%: steps instead of a continuum
    assert np.linalg.norm(left) / norm == pytest.approx(error, rel=0.02)
    walk = np.random.default_rng(1).normal(size=steps).cumsum()
    assert abs(left @ (walk + 1e6)) <= error * norm * np.linalg.norm(walk - walk.mean()) + 1e-6
