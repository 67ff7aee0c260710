"""Noise processes, eps / x0 / v and posteriors, against closed forms."""

import math

import pytest
import torch
from helpers.diffusion import PROCESSES, normal, seeded, time
from scipy import stats

from dit.diffusion.process import (
    DDPM,
    Denoiser,
    Flow,
    add_noise,
    posterior,
    target,
    to_x0_eps,
)
from dit.diffusion.schedules import cosine_betas, linear_betas

all_processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def spread_times(process, ends=True):
    """21 times over the full range."""
    t = torch.linspace(0, process.end, 21, dtype=torch.float64)
    return t if ends else t[1:-1]


@all_processes
def test_tangent_identity(process):
    alpha, sigma, d_alpha, d_sigma = process.coefficients(spread_times(process))
    assert (alpha * d_sigma - sigma * d_alpha - 1).abs().max() < 1e-15


@all_processes
def test_the_tangent_is_the_derivative_by_the_arc(process):
    t = torch.arange(1, 901, dtype=torch.float64) * process.end / 1000
    alpha, sigma, d_alpha, d_sigma = process.coefficients(t)
    width = process.arc(t).diff()
    for curve, tangent in ((alpha, d_alpha), (sigma, d_sigma)):
        assert (curve.diff() / width - (tangent[1:] + tangent[:-1]) / 2).abs().max() < 1e-4


@all_processes
def test_data_at_0_noise_at_the_end(process):
    alpha, sigma, *_ = process.coefficients(torch.tensor([0.0, process.end], dtype=torch.float64))
    assert (alpha[0], sigma[0]) == (1, 0)
    assert alpha[1] < 0.007  # 2006.11239: signal of linear betas at the end
    assert sigma[1] == pytest.approx(1, abs=1e-4)
    alpha, sigma, *_ = process.coefficients(spread_times(process, ends=False))
    assert ((alpha / sigma).diff() < 0).all()


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddpm_is_variance_preserving(name):
    alpha, sigma, d_alpha, d_sigma = PROCESSES[name].coefficients(torch.arange(1001))
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-15
    assert torch.equal(d_alpha, -sigma)
    assert torch.equal(d_sigma, alpha)


def test_betas_as_printed():
    betas = linear_betas(1000)
    assert (betas[0].item(), betas[-1].item()) == pytest.approx((1e-4, 0.02))
    assert betas[500].item() == pytest.approx(1e-4 + (0.02 - 1e-4) * 500 / 999)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    alpha_bar = DDPM("cosine").alpha[1:1000].square()
    assert alpha_bar.tolist() == pytest.approx([v / f[0] for v in f[1:1000]], rel=1e-9)
    assert cosine_betas(1000).max() == 0.999


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@all_processes
def test_every_target_gives_back_data_and_noise(process, objective):
    t = spread_times(process, ends=False)
    x0, eps = normal(len(t), 3, seed=1), normal(len(t), 3, seed=2)
    out = target(process, objective, x0, eps, t)
    found_x0, found_eps = to_x0_eps(process, objective, out, add_noise(process, x0, eps, t), t)
    assert (found_x0 - x0).abs().max() < 1e-10
    assert (found_eps - eps).abs().max() < 1e-10


def test_velocities_as_printed():
    """2202.00512: alpha eps - sigma x0; for a flow (2210.02747): eps - x0."""
    x0, eps, t = normal(1, 5, seed=1), normal(1, 5, seed=2), time([400.0])
    alpha, sigma, *_ = DDPM().coefficients(t)
    v = target(DDPM(), "v", x0, eps, t)
    assert (v - (alpha * eps - sigma * x0)).abs().max() < 1e-15
    assert torch.equal(target(Flow(), "v", x0, eps, t / 1000), eps - x0)


def test_noised_data_as_computed_by_hand():
    process = DDPM()
    process.alpha[1], process.sigma[1] = math.sqrt(0.8), math.sqrt(0.2)  # alpha_bar = 0.8
    x0, eps = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -0.3]])
    x_t = add_noise(process, x0, eps, torch.tensor([1.0]))
    assert x_t[0].tolist() == pytest.approx([1.118, 1.655], abs=5e-4)


def test_float32_data_stays_float32():
    x, t = torch.ones(2, 3, 4, 4), time([1.0, 700.0])
    assert add_noise(DDPM(), x, x, t).dtype == torch.float32
    assert posterior(DDPM(), x, x, t, t - 1).mean.dtype == torch.float32


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_posterior_of_one_step_is_the_closed_form(schedule):
    """2006.11239, equations 6 and 7."""
    betas = (linear_betas if schedule == "linear" else cosine_betas)(1000)
    alpha_bar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    x_t, x0, t = normal(1000, 2, seed=1), normal(1000, 2, seed=2), torch.arange(1, 1001).double()
    from_x0 = before.sqrt() * betas / (1 - alpha_bar)
    from_x_t = (1 - betas).sqrt() * (1 - before) / (1 - alpha_bar)
    found = posterior(DDPM(schedule), x_t, x0, t, t - 1)
    assert (found.mean - (from_x0[:, None] * x0 + from_x_t[:, None] * x_t)).abs().max() < 1e-10
    assert (found.var_max[:, 0] - betas).abs().max() < 1e-12
    assert (found.var_min[:, 0] - (1 - before) / (1 - alpha_bar) * betas).abs().max() < 1e-12


@all_processes
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.9, 0.2), (0.5, 0.499), (0.3, 0.001)])
def test_posterior_and_forward_process_agree(process, t, s):
    """A step from q(x_t | x0) lands in q(x_s | x0) (Chapman-Kolmogorov), for any s < t."""
    t, s = time(process.end * t), time(process.end * s)
    x0, one = torch.full((1, 1), 0.7, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    alpha_t, sigma_t, *_ = process.coefficients(t)
    alpha_s, sigma_s, *_ = process.coefficients(s)
    step = posterior(process, alpha_t * x0, x0, t, s)
    slope = posterior(process, one, 0 * one, t, s).mean  # of the mean against x_t
    assert (step.mean - alpha_s * x0).abs().max() < 1e-12
    assert (slope**2 * sigma_t**2 + step.var_min - sigma_s**2).abs().max() < 1e-12
    # the forward step from s to t, with variance var_max, lands in q(x_t | x0)
    assert ((alpha_t / alpha_s) ** 2 * sigma_s**2 + step.var_max - sigma_t**2).abs().max() < 1e-12


@all_processes
def test_posteriors_compose(process):
    """t -> u -> s with the same x0 is t -> s, in mean and variance."""
    t, u, s = (time(process.end * part) for part in (0.8, 0.5, 0.1))
    x_t, x0 = normal(1, 4, seed=1), normal(1, 4, seed=2)
    first, direct = posterior(process, x_t, x0, t, u), posterior(process, x_t, x0, t, s)
    second = posterior(process, first.mean, x0, u, s)
    slope = posterior(process, torch.ones(1, 1).double(), torch.zeros(1, 1).double(), u, s).mean
    assert (second.mean - direct.mean).abs().max() < 1e-12
    assert (second.var_min + slope**2 * first.var_min - direct.var_min).abs().max() < 1e-12


def release_respacing(steps):
    """Times as the DiT release takes them: strides from 0, rounded to even."""
    return [*(1 + round(i * 999 / (steps - 1)) for i in reversed(range(steps))), 0]


@pytest.mark.parametrize("steps", [2, 3, 7, 25, 28, 50, 100, 223, 250, 500, 1000])
def test_ddpm_times_are_those_of_the_release(steps):
    assert DDPM().times(steps).tolist() == release_respacing(steps)


def test_ddpm_times_are_distinct_for_any_number_of_steps():
    for steps in range(1, 1001):
        times = DDPM().times(steps)
        assert len(times) == steps + 1
        assert (times.diff() < 0).all()


def test_flow_times():
    assert Flow().times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    # 2403.03206, equation 23, with sqrt(m / n) = 3
    shifted = [1, 3 * 0.75 / 2.5, 3 * 0.5 / 2, 3 * 0.25 / 1.5, 0]
    assert Flow(shift=3.0).times(4).tolist() == pytest.approx(shifted)


@pytest.mark.parametrize("process", [DDPM(), DDPM("cosine"), Flow()])
def test_cosine_spacing_is_densest_at_both_ends(process):
    times, even = process.times(12, "cosine"), process.times(12)
    assert len(times) == 13
    assert (times[0], times[-1]) == (even[0], 0)
    # the last gap of a DDPM is always 1
    gaps = -times.diff() if isinstance(process, Flow) else -times[:-1].diff()
    assert 0 < max(gaps[0], gaps[-1]) < even[0] / 12 / 3 < even[0] / 12 < max(gaps)


def test_cosine_spacing_of_a_flow():
    middle = (1 + math.cos(math.pi / 4)) / 2
    assert Flow().times(4, "cosine").tolist() == pytest.approx([1, middle, 0.5, 1 - middle, 0])


def unshifted(t, shift=3.0):
    return t / (shift - (shift - 1) * t)


def logit_normal(t):
    return stats.norm.cdf(stats.logistic.ppf(t))


TIME_CDFS = {
    ("uniform", 1.0): lambda t: t,
    ("uniform", 3.0): unshifted,
    ("logit-normal", 1.0): logit_normal,
    ("logit-normal", 3.0): lambda t: logit_normal(unshifted(t)),
}


@pytest.mark.parametrize("options", TIME_CDFS)
def test_distribution_of_training_times_of_flows(options):
    t = Flow(*options).sample_time(20_000, seeded())
    assert t.dtype == torch.float64
    for other, cdf in TIME_CDFS.items():
        p = stats.kstest(t.numpy(), cdf).pvalue
        assert p > 0.01 if other == options else p < 1e-6


def test_training_times_of_ddpm_are_uniform():
    t = DDPM().sample_time(20_000, seeded())
    assert (t.min(), t.max()) == (1, 1000)
    assert stats.chisquare(torch.histc(t, 10, 0.5, 1000.5)).pvalue > 0.01


def test_the_network_gets_published_times():
    """DDPM networks count 0 … 999 from the least noise; a flow's 0 … 1 becomes 0 … 1000."""
    assert Flow().network_time(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 500, 1000]
    passed = []
    denoise = Denoiser(lambda x, t, y: passed.append(t.tolist()) or x, DDPM(), "eps")
    x = torch.ones(2, 1, 2, 2)
    denoise(x, time(1000.0), torch.zeros(2).long())
    denoise(x, time([1.0, 7.0]), torch.zeros(2).long())
    assert passed == [[999, 999], [0, 6]]


def test_denoiser_reads_the_variance_as_the_release_does():
    """2102.09672, equation 15: the network's -1 … 1 interpolates between the two variances."""
    x, t, y = normal(1, 2, 2, 2), time(10.0), torch.zeros(1).long()
    out = torch.cat([x + 1, torch.full_like(x, -1)], dim=1)
    prediction = Denoiser(lambda *_: out, DDPM(), "eps", learn_sigma=True)(x, t, y)
    assert torch.equal(prediction.out, x + 1)
    assert torch.equal(prediction.eps, x + 1)
    assert prediction.var_fraction.unique().tolist() == [0]
    assert Denoiser(lambda *_: x, DDPM(), "eps")(x, t, y).var_fraction is None
