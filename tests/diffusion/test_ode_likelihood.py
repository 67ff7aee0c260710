"""Likelihoods against closed forms: Gaussian and uniform data, whose best denoisers are known."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal

from dit.diffusion.likelihood import Levels, chain, variational_bound, variational_bound_of_chain
from dit.diffusion.ode_likelihood import UnitProbes, divergence, ode_log_density, ode_times
from dit.diffusion.process import DDPM, Denoiser, Flow, Prediction, add_noise, like

PROCESSES = {"linear": DDPM("linear"), "cosine": DDPM("cosine"), "flow": Flow()}
PIXELS = Levels(torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(process, mean, std):
    """The best denoiser of data N(mean, std^2): E[x0 | x_t]; and E[v | x_t], which has no trouble at either end."""

    def denoise(x_t, t, y):
        alpha, sigma, *_ = (like(c, x_t) for c in process.coefficients(t))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = mean + gain * (x_t - alpha * mean)
        eps = sigma / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)
        true = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)  # variance of x0 given x_t
        return Prediction(
            x0, eps, eps, fraction(process, t, true) if isinstance(process, DDPM) else None
        )

    return denoise


def fraction(process, t, var_x0):
    """The variance of x_{t-1} given x_t, on the log scale between smallest and largest, as a network would say it."""
    at, to = process.coefficients(t), process.coefficients(t - 1)
    largest, smallest = variances(process, t)
    var = smallest + (to.alpha * largest / at.sigma**2) ** 2 * var_x0
    floor = (
        smallest if t > 1 else variances(process, t + 1)[1]
    )  # 0 in the last step: the one before it serves
    return ((var / floor).log() / (largest / floor).log()).clamp(0, 1)


def variances(process, t):
    """Of the step from t to t - 1: the forward one's, and the true posterior's."""
    at, to = process.coefficients(t), process.coefficients(t - 1)
    largest = at.sigma**2 - (at.alpha / to.alpha) ** 2 * to.sigma**2
    return largest, largest * to.sigma**2 / at.sigma**2


# -- the ODE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.01, 0.5, 1.5])
def test_density_of_gaussian_data_is_the_exact_one(std):
    x = 0.2 + std * torch.randn(16, 1, 1, 3, generator=seeded(), dtype=torch.float64)
    found = ode_log_density(
        gaussian(Flow(), 0.2, std),
        Flow(),
        x,
        torch.zeros(16),
        ode_times(Flow(), 500),
        UnitProbes(x),
    )
    assert ((found - Normal(0.2, std).log_prob(x).sum((1, 2, 3))) / 3).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.5])
def test_density_under_a_ddpm_is_the_exact_one(name, std):
    """On average: single images feel that noised data are not quite the noise that the ODE ends in."""
    process = PROCESSES[name]
    x = 0.2 + std * torch.randn(500, 1, 1, 3, generator=seeded(), dtype=torch.float64)
    found = ode_log_density(
        gaussian(process, 0.2, std),
        process,
        x,
        torch.zeros(500),
        ode_times(process, 200),
        UnitProbes(x),
    )
    errors = (found - Normal(0.2, std).log_prob(x).sum((1, 2, 3))) / 3
    assert errors.mean().abs() < 1e-3
    assert errors.abs().max() < 0.03


@pytest.mark.portable
def test_the_error_falls_with_the_square_of_the_step():
    x = 0.5 * torch.randn(16, 1, 2, 2, generator=seeded(), dtype=torch.float64)
    exact = Normal(0.0, 0.5).log_prob(x).sum((1, 2, 3))
    errors = [
        (
            ode_log_density(
                gaussian(Flow(), 0.0, 0.5),
                Flow(),
                x,
                torch.zeros(16),
                ode_times(Flow(), steps),
                UnitProbes(x),
            )
            - exact
        )
        .abs()
        .max()
        .item()
        for steps in (20, 40, 80)
    ]
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_density_of_uniform_data_is_uniform():
    """Eight bits for each of 256 levels."""
    edge = 1 + 1 / 255

    def denoise(x_t, t, y):
        alpha, sigma, *_ = (like(c, x_t) for c in Flow().coefficients(t))
        low, high = ((alpha * side - x_t) / sigma for side in (-edge, edge))  # of -eps
        unit = Normal(0.0, 1.0)
        mass = (unit.cdf(high) - unit.cdf(low)).clamp(min=1e-30)
        eps = (unit.log_prob(high).exp() - unit.log_prob(low).exp()) / mass
        x0 = (x_t - sigma * eps) / alpha if t < 1 else 0 * x_t
        return Prediction(x0, eps, eps, None)

    x = (torch.rand(64, 3, 4, 4, generator=seeded(), dtype=torch.float64) * 2 - 1) * edge
    nats = -ode_log_density(
        denoise, Flow(), x, torch.zeros(64), ode_times(Flow(), 200), signs(x, 1)
    )
    bits = (nats / 48 + math.log(127.5)) / math.log(2)
    assert bits.mean().item() == pytest.approx(8, abs=0.02)


def signs(x, count, seed=1):
    return torch.randn(count, *x.shape, generator=seeded(seed), dtype=x.dtype).sign()


def test_hutchinson_is_right_on_average():
    weight = torch.randn(12, 12, generator=seeded(), dtype=torch.float64)
    x = torch.randn(3, 3, 2, 2, generator=seeded(2), dtype=torch.float64).requires_grad_()
    v = torch.tanh(x.flatten(1) @ weight.T).view_as(x)
    exact = ((1 - v.flatten(1) ** 2) * weight.diagonal()).sum(1)
    assert (divergence(v, x, UnitProbes(x)) - exact).abs().max() < 1e-12
    each = torch.stack([divergence(v, x, probe[None]) for probe in signs(x, 3000)])
    error = each.std(0) / 3000**0.5
    assert ((each.mean(0) - exact).abs() < 4 * error).all()
    assert torch.allclose(divergence(v, x, signs(x, 3000)[:5]), each[:5].mean(0))


def test_unit_probes_are_made_one_at_a_time():
    """All at once would be D x D numbers: of 256 x 256 pixels 155 GB."""
    first, second, *_ = itertools.islice(UnitProbes(torch.zeros(1, 3, 256, 256)), 2)
    assert first.flatten().nonzero().tolist() == [[0]]
    assert second.flatten().nonzero().tolist() == [[1]]
    probes = UnitProbes(torch.zeros(2, 1, 2, 3))
    assert torch.equal(torch.stack([*probes])[:, 1].flatten(1), math.sqrt(6) * torch.eye(6))
    assert len([*probes]) == 6  # again, as each step asks for them


def test_times_of_the_ode_lie_near_data():
    for process in PROCESSES.values():
        times = ode_times(process, 50)
        assert times[0] == 0
        assert (times.diff() > 0).all()
        arcs = process.arc(times)
        assert arcs.diff()[0] < arcs.diff()[-1] / 3
    assert ode_times(PROCESSES["flow"], 50)[-1] == 1
    assert ode_times(PROCESSES["linear"], 50)[-1] == 1000
    assert ode_times(PROCESSES["cosine"], 50)[-1] == PROCESSES["cosine"].start


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_tangent_is_the_derivative_by_the_arc(process):
    t = torch.arange(1, 901, dtype=torch.float64) * process.end / 1000
    alpha, sigma, d_alpha, d_sigma = process.coefficients(t)
    width = process.arc(t).diff()
    for curve, tangent in ((alpha, d_alpha), (sigma, d_sigma)):
        assert (curve.diff() / width - (tangent[1:] + tangent[:-1]) / 2).abs().max() < 1e-4


# -- the bound -------------------------------------------------------------------------------------------------------


def levels_of_a_gaussian(count, std):
    x = std * torch.randn(count, 3, 4, 4, generator=seeded(), dtype=torch.float64)
    return (x.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


def bound(denoise, process, x0, steps, variance, levels=PIXELS, seed=3):
    draws = seeded(seed)
    return variational_bound_of_chain(
        denoise,
        process,
        x0,
        torch.zeros(len(x0)),
        chain(process, steps),
        lambda: torch.randn(x0.shape, generator=draws, dtype=x0.dtype),
        levels,
        variance,
    )


def total(found):
    return found.prior + found.steps + found.decoder


def exact_bits(x0, std):
    """Of each image [B] of the levels of a Gaussian that hardly reaches black or white."""
    return (
        -(Normal(0.0, std).cdf(x0 + 1 / 255) - Normal(0.0, std).cdf(x0 - 1 / 255))
        .log2()
        .mean((1, 2, 3))
    )


def assert_just_above(found, exact, margin):
    """A bound that is tight: one draw of noise per step leaves the mean over images a standard error."""
    gap = found - exact
    assert -3 * gap.std() / len(gap) ** 0.5 < gap.mean() < margin


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_bound_approaches_the_exact_bits_from_above(name):
    process, std = PROCESSES[name], 0.2
    x0 = levels_of_a_gaussian(100, std)
    denoise, exact = gaussian(process, 0.0, std), exact_bits(x0, std)
    assert_just_above(total(bound(denoise, process, x0, 1000, "learned")), exact, 0.06)
    small, large = (
        [
            total(bound(denoise, process, x0, steps, variance)).mean() - exact.mean()
            for steps in (10, 50, 250, 1000)
        ]
        for variance in ("small", "large")
    )
    assert small[0] > small[1] > small[2] > small[3] > 0.5
    assert large[0] > 0.4 > 0.2 > max(large[1:])


def test_a_prior_that_knows_is_counted():
    process = DDPM("linear")
    x0 = levels_of_a_gaussian(4, 0.3)
    found = bound(gaussian(process, 0.0, 0.3), process, x0, 100, "large")
    alpha, sigma = process.alpha[1000], process.sigma[1000]
    direct = torch.distributions.kl_divergence(Normal(alpha * x0, sigma), Normal(0.0, 1.0)).mean(
        (1, 2, 3)
    )
    assert found.prior.tolist() == pytest.approx((direct / math.log(2)).tolist(), rel=1e-6)


def test_the_last_step_has_the_learned_variance():
    """Narrow data, whose variance given x_1 is 0.8 of the noise's: between the floor of 0.54 and the ceiling."""
    process, std = DDPM("linear"), 0.02
    x0, draws, used = levels_of_a_gaussian(20, std), seeded(3), []

    def noise():
        used.append(torch.randn(x0.shape, generator=draws, dtype=x0.dtype))
        return used[-1]

    def decoder(variance):
        return variational_bound_of_chain(
            gaussian(process, 0.0, std),
            process,
            x0,
            torch.zeros(20),
            torch.tensor([2.0, 1.0, 0.0]).double(),
            noise,
            PIXELS,
            variance,
        ).decoder

    found, sigma = decoder("learned"), process.sigma[1]
    x_1, gain = (
        process.alpha[1] * x0 + sigma * used[-1],
        std**2 / (process.alpha[1] ** 2 * std**2 + sigma**2),
    )
    left = Normal(process.alpha[1] * gain * x_1, (sigma**2 * gain).sqrt())
    assert 0.79 < gain < 0.81
    exact = -(left.cdf(x0 + 1 / 255) - left.cdf(x0 - 1 / 255)).log2().mean((1, 2, 3))
    assert found.tolist() == pytest.approx(exact.tolist(), rel=1e-6)
    used.clear()
    draws.manual_seed(3)
    assert (decoder("small") - exact).abs().max() > 0.01


def test_the_whole_chain_is_the_sum_of_training_terms():
    """With a learned variance, the same terms that --loss vlb draws one of."""
    process, times = DDPM(steps=20), chain(DDPM(steps=20), 20)
    x0, draws = levels_of_a_gaussian(5, 0.2), seeded(3)
    network = lambda x, t, y: torch.cat([0.8 * x, torch.cos(x)], 1)  # noqa: E731
    denoise = Denoiser(network, process, "eps", learn_sigma=True)
    clipped = lambda x, t, y: (said := denoise(x, t, y))._replace(x0=said.x0.clamp(-1, 1))  # noqa: E731
    total = torch.zeros(5, dtype=torch.float64)
    for t in times[:-1]:
        t = t.expand(5)
        x_t = add_noise(process, x0, torch.randn(x0.shape, generator=draws, dtype=x0.dtype), t)
        total += variational_bound(process, x0, x_t, t, clipped(x_t, t, None))
    found = bound(denoise, process, x0, 20, "learned")
    assert (found.steps + found.decoder).tolist() == pytest.approx(total.tolist(), rel=1e-9)


def test_a_bound_in_scaled_pixels_is_that_of_the_pixels():
    """Latents of --latent-norm data: the same chain in other units has the same decoder."""
    process, std, scale = DDPM("linear"), 0.2, 2.5
    x0 = levels_of_a_gaussian(50, std)
    levels = Levels(torch.full((3, 1, 1), 0.1).double(), torch.full((3, 1, 1), scale).double())
    denoise = gaussian(process, -0.1 * scale, std * scale)
    found = total(bound(denoise, process, (x0 - 0.1) * scale, 1000, "learned", levels))
    assert_just_above(found, exact_bits(x0, std), 0.06)


def test_uniform_levels_need_eight_bits():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    process = DDPM("linear")

    def denoise(x_t, t, y):
        alpha, sigma, *_ = (like(c, x_t) for c in process.coefficients(t))
        odds = -0.5 * ((x_t[..., None] - alpha[..., None] * levels) / sigma[..., None]) ** 2
        return Prediction((odds.softmax(-1) * levels).sum(-1), x_t, x_t, None)

    x0 = levels[torch.randint(0, 256, (8, 3, 4, 4), generator=seeded())]
    found = total(bound(denoise, process, x0, 1000, "large")).mean().item()
    assert 8 - 0.02 < found < 8.2
