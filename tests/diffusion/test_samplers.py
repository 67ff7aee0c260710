"""Samplers: with the exact denoiser of a Gaussian they must sample it, at their papers' orders."""

from functools import partial

import pytest
import torch
from conftest import Copies
from helpers.diffusion import PROCESSES, Toy, noises, normal, time, toy

from dit.diffusion import samplers
from dit.diffusion.guidance import cfg
from dit.diffusion.process import DDPM, Denoiser, Flow, Prediction, like, posterior, target

MEAN, STD = 0.8, 0.5
ALL = {
    "ddpm-small": partial(samplers.ddpm, variance="small"),
    "ddpm-large": partial(samplers.ddpm, variance="large"),
    "ddpm-learned": partial(samplers.ddpm, variance="learned"),
    "ddim": samplers.ddim,
    "ddim-1": partial(samplers.ddim, eta=1.0),
    "euler": samplers.euler,
    "heun": samplers.heun,
    "dpmpp_2m": samplers.dpmpp_2m,
}
ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2}  # of those that draw no noise
SHAPE = (3, 2, 4, 4)
X, Y = normal(*SHAPE), torch.arange(3)

all_samplers = pytest.mark.parametrize("sampler", ALL)
all_processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def no_noise():
    raise AssertionError("a deterministic sampler drew noise")


def exact(process):
    """The best denoiser for data from Normal(MEAN, STD), by Bayes' rule."""

    def denoise(x_t, t, y):
        alpha, sigma, *_ = (like(c, x_t) for c in process.coefficients(t))
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * MEAN)
        eps = (x_t - alpha * x0) / sigma
        return Prediction(x0, eps, target(process, "v", x0, eps, t), torch.full_like(x0, 0.5))

    return denoise


def ode_solution(process, x, times):
    """The end of the probability-flow ODE of Normal(MEAN, STD) that starts at x."""
    alpha, sigma, *_ = process.coefficients(times[[0, -1]])
    mean, std = alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()
    return mean[1] + std[1] * (x - mean[0]) / std[0]


@all_samplers
@all_processes
def test_every_sampler_samples_the_gaussian(process, sampler):
    shape = (1, 1, 100, 100)
    noise = no_noise if sampler in ORDERS else noises(shape)
    x = ALL[sampler](exact(process), process, normal(*shape), None, process.times(250), noise)
    error = 4 / 10_000**0.5 + 0.02  # of 10,000 draws, and of 250 steps
    assert x.mean().item() == pytest.approx(MEAN, abs=error * STD)
    assert x.std().item() == pytest.approx(STD, rel=error)
    fourth = ((x - x.mean()) ** 4).mean().item()
    assert fourth == pytest.approx(3 * x.var().item() ** 2, rel=0.1)  # still normal


def order(sampler, process, coarse, fine):
    """How often the error halves from coarse to fine times."""
    x, errors = normal(1, 1, 1, 50), []
    for times in (coarse, fine):
        found = ALL[sampler](exact(process), process, x, None, times, no_noise)
        errors.append((found - ode_solution(process, x, times)).abs().max())
    return torch.log2(errors[0] / errors[1]).item()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence_for_flows(sampler, shift):
    process = Flow(shift=shift)
    # steps of log(alpha / sigma) do not shrink at a flow's ends, which costs dpmpp_2m a logarithm
    steps, allowed = (800, 0.3) if sampler == "dpmpp_2m" else (100, 0.05)
    found = order(sampler, process, process.times(steps), process.times(2 * steps))
    assert found == pytest.approx(ORDERS[sampler], abs=allowed)


@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence_away_from_the_ends(sampler):
    times = [torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64) for n in (50, 100)]
    assert order(sampler, Flow(), *times) == pytest.approx(ORDERS[sampler], abs=0.1)


@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence_for_ddpm(sampler):
    process = DDPM(steps=6400)  # integer times: the steps of 1000 are not small enough
    found = order(sampler, process, process.times(100), process.times(200))
    assert found == pytest.approx(ORDERS[sampler], abs=0.3)


def run(sampler, process, times, seed=5, denoise=None, x=X):
    denoise = denoise or toy(process, learn_sigma=sampler == "ddpm-learned")
    return ALL[sampler](denoise, process, x, Y, times, noises(SHAPE, seed))


@pytest.mark.parametrize("sampler", [name for name in ALL if name != "dpmpp_2m"])
@all_processes
def test_four_steps_are_two_and_two(process, sampler):
    times = process.times(4)
    half = run(sampler, process, times[:3])
    both = run(sampler, process, times[2:], seed=7, x=half)
    assert (both - run(sampler, process, times)).abs().max() < 1e-12


def test_dpmpp_uses_the_previous_step():
    """Cut in two it restarts at first order, so the halves differ; its first step is Euler's."""
    process = DDPM()
    times = process.times(4)
    halves = run("dpmpp_2m", process, times[2:], x=run("dpmpp_2m", process, times[:3]))
    assert (halves - run("dpmpp_2m", process, times)).abs().max() > 1e-3
    first = run("euler", process, times[:2])
    assert (run("dpmpp_2m", process, times[:2]) - first).abs().max() < 1e-12 * first.abs().max()


@all_samplers
def test_number_of_network_calls(sampler):
    denoise = toy(DDPM(), learn_sigma=True)
    run(sampler, DDPM(), DDPM().times(5), denoise=denoise)
    assert len(denoise.network.labels) == (9 if sampler == "heun" else 5)


@all_samplers
@all_processes
def test_one_step_is_the_predicted_data(process, sampler):
    denoise, times = toy(process, learn_sigma=True), process.times(1)
    x0 = denoise(X, times[0], Y).x0
    found = run(sampler, process, times, denoise=denoise)
    assert (found - x0).abs().max() < 1e-12 * x0.abs().max()


@all_processes
def test_ddim_with_eta_1_is_ancestral(process):
    times = process.times(20)
    ancestral = run("ddpm-small", process, times)
    assert (run("ddim-1", process, times) - ancestral).abs().max() < 1e-9 * ancestral.abs().max()


def test_eta_scales_the_noise():
    """2010.02502, equations 12 and 16."""
    process, x = DDPM(), normal(1, 1, 2, 2)
    times = torch.tensor([800.0, 300.0], dtype=torch.float64)
    denoise, a = exact(process), process.coefficients(times).alpha ** 2
    prediction = denoise(x, times[0], None)
    for eta in (0.3, 1.0):
        steps = []
        for noise in (torch.ones_like(x), torch.zeros_like(x)):
            draw = lambda noise=noise: noise  # noqa: E731
            steps.append(samplers.ddim(denoise, process, x, None, times, draw, eta=eta))
        sigma = eta * ((1 - a[1]) / (1 - a[0])).sqrt() * (1 - a[0] / a[1]).sqrt()
        assert (steps[0] - steps[1] - sigma).abs().max() < 1e-12
        direction = (1 - a[1] - sigma**2).sqrt() * prediction.eps
        assert (steps[1] - a[1].sqrt() * prediction.x0 - direction).abs().max() < 1e-12


def test_euler_for_ddpm_is_ddim():
    times = DDPM().times(10)
    assert (run("euler", DDPM(), times) - run("ddim", DDPM(), times)).abs().max() < 1e-12


def test_steps_for_flows_as_printed():
    """Euler: x + (s - t) v; Heun: the mean of v at both ends."""
    network = Toy()

    def v(x, t):
        return network(x, torch.full((3,), 1000 * t, dtype=torch.float64), Y)

    one = X - 0.4 * v(X, 1.0)
    two = X - 0.4 * (v(X, 1.0) + v(one, 0.6)) / 2
    times = torch.tensor([1.0, 0.6], dtype=torch.float64)
    assert (run("euler", Flow(), times) - one).abs().max() < 1e-12
    assert (run("heun", Flow(), times) - two).abs().max() < 1e-12


def test_learned_variance_lies_between_the_fixed_ones():
    x = normal(2, 1, 2, 2)
    _, *variances = posterior(DDPM(), x, x, time(500.0), time(400.0))
    small, large = (samplers.step_std(*variances, name, None) for name in ("small", "large"))
    assert (small < large).all()
    for fraction, expected in ((0.0, small), (1.0, large), (0.5, (small * large).sqrt())):
        found = samplers.step_std(*variances, "learned", torch.full_like(x, fraction))
        assert (found / expected - 1).abs().max() < 1e-12


@all_samplers
@all_processes
def test_float32_stays_near_float64(process, sampler):
    denoise, times = toy(process, "v", learn_sigma=True), process.times(20)
    double = ALL[sampler](denoise, process, X, Y, times, noises(SHAPE))
    draw = noises(SHAPE)
    single = ALL[sampler](denoise, process, X.float(), Y, times, lambda: draw().float())
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 1e-3


@pytest.mark.parametrize(
    "copy", [lambda x: x.to("meta"), lambda x: torch.empty(2, device="meta").copy_(x)]
)
def test_copies_are_counted(copy):
    with Copies() as copies:
        copy(torch.zeros(2))
    assert len(copies.found) == 1


@all_samplers
@all_processes
def test_no_step_waits_for_the_device_or_copies_to_it(process, sampler):
    """A tensor on the meta device has no values: reading one would fail."""
    x, y = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    denoise = Denoiser(lambda x, t, y: torch.cat([x, x], dim=1), process, "v", learn_sigma=True)
    guided = cfg(denoise, process, 4.0, 10, interval=(0.2, 0.8), channels=3)
    with Copies() as copies:
        out = ALL[sampler](guided, process, x, y, process.times(6), lambda: torch.empty_like(x))
    assert out.device.type == "meta"
    assert out.shape == x.shape
    assert not copies.found
