"""Likelihoods against closed forms: Gaussian and uniform data, whose best denoisers are known."""

import math

import pytest
import torch
from helpers.diffusion import PROCESSES, normal, seeded
from torch.distributions import Normal, kl_divergence

from dit.diffusion.likelihood import Levels, bound_of_chain, chain_times, variational_bound
from dit.diffusion.ode_likelihood import UnitProbes, divergence, ode_log_density, ode_times
from dit.diffusion.process import DDPM, Denoiser, Flow, Prediction, add_noise, like, posterior

PIXELS = Levels(torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double())
PIXEL_LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1

both_ddpms = pytest.mark.parametrize("process", [DDPM(), DDPM("cosine")], ids=["linear", "cosine"])


def gaussian(process, mean, std):
    """The best denoiser of data from N(mean, std^2): E[x0 | x_t] and E[eps | x_t]."""

    def denoise(x_t, t, y):
        alpha, sigma, *_ = (like(c, x_t) for c in process.coefficients(t))
        var = alpha**2 * std**2 + sigma**2
        x0 = mean + alpha * std**2 / var * (x_t - alpha * mean)
        eps = sigma / var * (x_t - alpha * mean)
        fraction = None
        if isinstance(process, DDPM):
            fraction = exact_fraction(process, t, std**2 * sigma**2 / var)
        return Prediction(x0, eps, eps, fraction)

    return denoise


def exact_fraction(process, t, var_x0):
    """The variance of x_{t-1} given x_t, on the log scale between smallest and largest."""
    at, to = process.coefficients(t), process.coefficients(t - 1)
    smallest, largest = variances(process, t)
    var = smallest + (to.alpha * largest / at.sigma**2) ** 2 * var_x0
    # the last step's smallest is 0: that of the step before is used
    floor = smallest if t > 1 else variances(process, t + 1)[0]
    return ((var / floor).log() / (largest / floor).log()).clamp(0, 1)


def variances(process, t):
    step = posterior(process, torch.zeros(1).double(), torch.zeros(1).double(), t, t - 1)
    return step.var_min, step.var_max


# -- the ODE ---------------------------------------------------------------------------------------


def density_error(process, mean, std, x, steps):
    """log p(x) by the ODE minus the exact one, in nats, [B]."""
    times = ode_times(process, steps)
    denoise = gaussian(process, mean, std)
    found = ode_log_density(denoise, process, x, torch.zeros(len(x)), times, UnitProbes(x))
    return found - Normal(mean, std).log_prob(x).sum((1, 2, 3))


@pytest.mark.parametrize("std", [0.01, 0.5, 1.5])
def test_density_of_gaussian_data_is_the_exact_one(std):
    x = 0.2 + std * normal(16, 1, 1, 3)
    assert (density_error(Flow(), 0.2, std, x, 500) / 3).abs().max() < 1e-3


@both_ddpms
@pytest.mark.parametrize("std", [0.1, 0.5, 1.5])
def test_density_under_a_ddpm_is_the_exact_one_on_average(process, std):
    """Noised data are not quite the noise in which the ODE ends, which single images show."""
    x = 0.2 + std * normal(500, 1, 1, 3)
    errors = density_error(process, 0.2, std, x, 200) / 3
    assert errors.mean().abs() < 1e-3
    assert errors.abs().max() < 0.03


@pytest.mark.portable
def test_the_error_falls_with_the_square_of_the_step():
    x = 0.5 * normal(16, 1, 2, 2)
    errors = [density_error(Flow(), 0.0, 0.5, x, steps).abs().max() for steps in (20, 40, 80)]
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_density_of_uniform_data_is_uniform():
    """Eight bits for each of 256 levels."""
    edge = 1 + 1 / 255
    unit = Normal(0.0, 1.0)

    def denoise(x_t, t, y):
        alpha, sigma, *_ = (like(c, x_t) for c in Flow().coefficients(t))
        low, high = ((alpha * side - x_t) / sigma for side in (-edge, edge))  # of -eps
        mass = (unit.cdf(high) - unit.cdf(low)).clamp(min=1e-30)
        eps = (unit.log_prob(high).exp() - unit.log_prob(low).exp()) / mass
        x0 = (x_t - sigma * eps) / alpha if t < 1 else 0 * x_t
        return Prediction(x0, eps, eps, None)

    x = (torch.rand(64, 3, 4, 4, generator=seeded(), dtype=torch.float64) * 2 - 1) * edge
    times = ode_times(Flow(), 200)
    nats = -ode_log_density(denoise, Flow(), x, torch.zeros(64), times, signs(x, 1))
    bits = (nats / 48 + math.log(127.5)) / math.log(2)
    assert bits.mean().item() == pytest.approx(8, abs=0.02)


def signs(x, count):
    return normal(count, *x.shape, seed=1).sign()


def test_hutchinson_is_right_on_average():
    weight, x = normal(12, 12), normal(3, 3, 2, 2, seed=2).requires_grad_()
    v = torch.tanh(x.flatten(1) @ weight.T).view_as(x)
    exact = ((1 - v.flatten(1) ** 2) * weight.diagonal()).sum(1)
    assert (divergence(v, x, UnitProbes(x)) - exact).abs().max() < 1e-12
    each = torch.stack([divergence(v, x, probe[None]) for probe in signs(x, 3000)])
    error = each.std(0) / 3000**0.5
    assert ((each.mean(0) - exact).abs() < 4 * error).all()
    assert torch.allclose(divergence(v, x, signs(x, 3000)[:5]), each[:5].mean(0))


def test_unit_probes_can_be_iterated_again_without_storing_them():
    """All at once would be D x D numbers: of 256 x 256 pixels 155 GB."""
    assert next(iter(UnitProbes(torch.zeros(1, 3, 256, 256)))).flatten().nonzero().tolist() == [[0]]
    probes = UnitProbes(torch.zeros(2, 1, 2, 3))
    for _ in range(2):
        assert torch.equal(torch.stack([*probes])[:, 1].flatten(1), math.sqrt(6) * torch.eye(6))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_times_of_the_ode_are_dense_near_data(process):
    times = ode_times(process, 50)
    assert (times[0], times[-1]) == (0, getattr(process, "start", 1))
    assert (times.diff() > 0).all()
    widths = process.arc(times).diff()
    assert widths[0] < widths[-1] / 3


# -- the bound -------------------------------------------------------------------------------------


def levels_of_a_gaussian(count, std):
    return ((std * normal(count, 3, 4, 4)).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


def bound(denoise, process, x0, times, variance, levels=PIXELS, draws=None):
    """The bound; `draws` collects the noise."""
    generator = seeded(3)
    draws = [] if draws is None else draws

    def noise():
        draws.append(torch.randn(x0.shape, generator=generator, dtype=x0.dtype))
        return draws[-1]

    y = torch.zeros(len(x0))
    return bound_of_chain(denoise, process, x0, y, times, noise, levels, variance)


def total(parts):
    return parts.prior + parts.steps + parts.decoder


def bits(normal, x0):
    """Of the pixel levels x0 under a normal that hardly reaches black or white, [B]."""
    mass = normal.cdf(x0 + 1 / 255) - normal.cdf(x0 - 1 / 255)
    return -mass.log2().mean((1, 2, 3))


def assert_just_above(bounds, exact, margin):
    """One draw of noise a step leaves the mean over images a standard error."""
    gap = bounds - exact
    assert -3 * gap.std() / len(gap) ** 0.5 < gap.mean() < margin


@both_ddpms
def test_the_bound_approaches_the_exact_bits_from_above(process):
    x0, denoise = levels_of_a_gaussian(100, 0.2), gaussian(process, 0.0, 0.2)
    exact = bits(Normal(0.0, 0.2), x0)
    learned = total(bound(denoise, process, x0, chain_times(process, 1000), "learned"))
    assert_just_above(learned, exact, 0.06)

    gaps = {}
    for variance in ("small", "large"):
        bounds = [
            bound(denoise, process, x0, chain_times(process, n), variance) for n in (10, 50, 1000)
        ]
        gaps[variance] = [(total(one) - exact).mean() for one in bounds]
    small, large = gaps["small"], gaps["large"]
    assert small[0] > small[1] > small[2] > 0.5
    assert large[0] > 0.4 > 0.2 > max(large[1:])


def test_the_prior_counts_what_noised_data_still_contain():
    process, x0 = DDPM(), levels_of_a_gaussian(4, 0.3)
    found = bound(
        gaussian(process, 0.0, 0.3), process, x0, chain_times(process, 100), "large"
    ).prior
    last = Normal(process.alpha[1000] * x0, process.sigma[1000])
    expected = kl_divergence(last, Normal(0.0, 1.0)).mean((1, 2, 3)) / math.log(2)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_the_last_step_has_the_learned_variance():
    """Data so narrow that the variance given x_1 lies between the smallest and the largest."""
    process, std, draws = DDPM(), 0.02, []
    x0, denoise = levels_of_a_gaussian(20, std), gaussian(process, 0.0, std)
    times = torch.tensor([2.0, 1.0, 0.0]).double()
    found = bound(denoise, process, x0, times, "learned", draws=draws).decoder

    alpha, sigma = process.alpha[1], process.sigma[1]
    x_1 = alpha * x0 + sigma * draws[-1]
    gain = std**2 / (alpha**2 * std**2 + sigma**2)
    assert 0.79 < gain < 0.81  # the smallest variance has 0.54 in its place
    exact = bits(Normal(alpha * gain * x_1, (sigma**2 * gain).sqrt()), x0)
    assert found.tolist() == pytest.approx(exact.tolist(), rel=1e-6)
    small = bound(denoise, process, x0, times, "small").decoder
    assert (small - exact).abs().max() > 0.01


def test_the_whole_chain_is_the_sum_of_training_terms():
    """With a learned variance, the terms of which --loss vlb draws one."""
    process, draws = DDPM(steps=20), []
    x0, times = levels_of_a_gaussian(5, 0.2), chain_times(process, 20)
    network = lambda x, t, y: torch.cat([0.8 * x, torch.cos(x)], 1)  # noqa: E731
    denoise = Denoiser(network, process, "eps", learn_sigma=True)
    found = bound(denoise, process, x0, times, "learned", draws=draws)

    expected = torch.zeros(5, dtype=torch.float64)
    for t, eps in zip(times[:-1], draws, strict=True):
        t = t.expand(5)
        x_t = add_noise(process, x0, eps, t)
        prediction = denoise(x_t, t, None)
        clipped = prediction._replace(x0=prediction.x0.clamp(-1, 1))
        expected += variational_bound(process, x0, x_t, t, clipped)
    assert (found.steps + found.decoder).tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_a_bound_in_scaled_pixels_is_that_of_the_pixels():
    """Latents of --latent-norm data: the same chain in other units."""
    process, std, scale = DDPM(), 0.2, 2.5
    x0 = levels_of_a_gaussian(50, std)
    levels = Levels(torch.full((3, 1, 1), 0.1).double(), torch.full((3, 1, 1), scale).double())
    denoise, times = gaussian(process, -0.1 * scale, std * scale), chain_times(process, 1000)
    found = total(bound(denoise, process, (x0 - 0.1) * scale, times, "learned", levels))
    assert_just_above(found, bits(Normal(0.0, std), x0), 0.06)


def test_uniform_levels_need_eight_bits():
    process = DDPM()

    def denoise(x_t, t, y):
        alpha, sigma, *_ = (like(c, x_t)[..., None] for c in process.coefficients(t))
        weights = (-0.5 * ((x_t[..., None] - alpha * PIXEL_LEVELS) / sigma) ** 2).softmax(-1)
        return Prediction((weights * PIXEL_LEVELS).sum(-1), x_t, x_t, None)

    x0 = PIXEL_LEVELS[torch.randint(0, 256, (8, 3, 4, 4), generator=seeded())]
    found = total(bound(denoise, process, x0, chain_times(process, 1000), "large")).mean().item()
    assert 8 - 0.02 < found < 8.2
