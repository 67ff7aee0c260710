"""Samplers: with the exact denoiser of a Gaussian they must find that Gaussian, at the order their papers promise."""

from functools import partial
from itertools import count

import pytest
import torch
from conftest import Copies

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
ODE = ("ddim", "euler", "heun", "dpmpp_2m")
PROCESSES = {
    "linear": DDPM("linear"),
    "cosine": DDPM("cosine"),
    "flow": Flow(),
    "shifted": Flow(shift=2.0),
}
Y = torch.zeros(1, dtype=torch.long)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noises(shape, seed=1):
    """Another draw with each call."""
    seeds = count(seed)
    return lambda: normal(*shape, seed=next(seeds))


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


def solution(process, x, times):
    """Where the probability-flow ODE of Normal(MEAN, STD) takes `x` from the first to the last of the times."""
    alpha, sigma, *_ = process.coefficients(times[[0, -1]])
    mean, std = alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()
    return mean[1] + std[1] * (x - mean[0]) / std[0]


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_sampler_finds_the_gaussian(process, sampler):
    shape = (1, 1, 100, 100)
    process = PROCESSES[process]
    noise = no_noise if sampler in ODE else noises(shape)
    x = ALL[sampler](exact(process), process, normal(*shape), Y, process.times(250), noise)
    error = 4 / 10_000**0.5 + 0.02  # of 10,000 draws, and of 250 steps
    assert x.mean().item() == pytest.approx(MEAN, abs=error * STD)
    assert x.std().item() == pytest.approx(STD, rel=error)
    assert ((x - x.mean()) ** 4).mean().item() == pytest.approx(
        3 * x.var().item() ** 2, rel=0.1
    )  # still normal


def order(sampler, process, coarse, fine):
    """How often the error halves when the steps double, over two lists of times."""
    x = normal(1, 1, 1, 50)
    errors = [
        (ALL[sampler](exact(process), process, x, Y, times, no_noise) - solution(process, x, times))
        .abs()
        .max()
        for times in (coarse, fine)
    ]
    return torch.log2(errors[0] / errors[1]).item()


ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence_for_flows(sampler, shift):
    process = Flow(shift=shift)
    # steps of log(alpha / sigma) do not shrink at the ends of a flow, which costs dpmpp_2m a logarithm: N^-2 log N
    steps, allowed = (800, 0.3) if sampler == "dpmpp_2m" else (100, 0.05)
    found = order(sampler, process, process.times(steps), process.times(2 * steps))
    assert found == pytest.approx(ORDERS[sampler], abs=allowed)


@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence_away_from_the_ends(sampler):
    times = [torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64) for n in (50, 100)]
    assert order(sampler, Flow(), *times) == pytest.approx(ORDERS[sampler], abs=0.1)


@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence_for_ddpm(sampler):
    process = DDPM(
        steps=6400
    )  # times are whole numbers, so that the steps of 1000 are not small enough
    assert order(sampler, process, process.times(100), process.times(200)) == pytest.approx(
        ORDERS[sampler], abs=0.3
    )


class Toy(torch.nn.Module):
    """A nonlinear network; counts its calls."""

    def __init__(self, learn_sigma=False):
        super().__init__()
        self.calls, self.learn_sigma = 0, learn_sigma

    def forward(self, x, t, y):
        self.calls += 1
        at = (t / 500 + y).view(-1, 1, 1, 1)
        out = torch.sin(2 * x + at) + 0.3 * x.flip(1)
        return torch.cat([out, torch.cos(3 * x - at)], dim=1) if self.learn_sigma else out


def toy(process, objective=None, learn_sigma=False):
    return Denoiser(Toy(learn_sigma), process, objective or process.slope, learn_sigma)


def run(sampler, process, times, seed=5, denoise=None, x=None):
    x = normal(3, 2, 4, 4) if x is None else x
    denoise = denoise or toy(process, learn_sigma=sampler == "ddpm-learned")
    return ALL[sampler](denoise, process, x, torch.arange(3), times, noises((3, 2, 4, 4), seed))


@pytest.mark.parametrize("sampler", [name for name in ALL if name != "dpmpp_2m"])
@pytest.mark.parametrize("process", PROCESSES)
def test_four_steps_are_two_and_two(process, sampler):
    process = PROCESSES[process]
    times = process.times(4)
    half = run(sampler, process, times[:3])
    assert (
        run(sampler, process, times[2:], seed=7, x=half) - run(sampler, process, times)
    ).abs().max() < 1e-12


def test_dpmpp_remembers_one_step():
    """Cut in two it starts again at first order, so the halves must not agree; its first step is euler's."""
    process = DDPM()
    times = process.times(4)
    halves = run("dpmpp_2m", process, times[2:], x=run("dpmpp_2m", process, times[:3]))
    assert (halves - run("dpmpp_2m", process, times)).abs().max() > 1e-3
    first = run("euler", process, times[:2])
    assert (run("dpmpp_2m", process, times[:2]) - first).abs().max() < 1e-12 * first.abs().max()


@pytest.mark.parametrize("sampler", ALL)
def test_calls_of_the_network(sampler):
    denoise = toy(DDPM(), learn_sigma=True)
    run(sampler, DDPM(), DDPM().times(5), denoise=denoise)
    assert denoise.network.calls == (9 if sampler == "heun" else 5)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("process", PROCESSES)
def test_one_step_is_the_predicted_data(process, sampler):
    process = PROCESSES[process]
    denoise, x = toy(process, learn_sigma=True), normal(3, 2, 4, 4)
    x0 = denoise(x, process.times(1)[0], torch.arange(3)).x0
    found = run(sampler, process, process.times(1), denoise=denoise, x=x)
    assert (found - x0).abs().max() < 1e-12 * x0.abs().max()


@pytest.mark.parametrize("process", PROCESSES)
def test_ddim_with_eta_1_is_ancestral(process):
    process = PROCESSES[process]
    times = process.times(20)
    ancestral = run("ddpm-small", process, times)
    assert (run("ddim-1", process, times) - ancestral).abs().max() < 1e-9 * ancestral.abs().max()


def test_ddim_with_eta_between_keeps_the_marginals():
    """2010.02502, section 4.1: every eta has the same q(x_s | x0): alpha_s x0 + sigma_s eps in distribution."""
    process, shape = DDPM(), (1, 1, 100, 200)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (800.0, 300.0))
    x0, eps = torch.full(shape, 0.7).double(), normal(*shape, seed=3)
    alpha, sigma, *_ = process.coefficients(t)

    def knows(x_t, t, y):
        return Prediction(x0, (x_t - alpha * x0) / sigma, x0, None)

    for eta in (0.0, 0.5, 1.0):
        x = samplers.ddim(
            knows, process, alpha * x0 + sigma * eps, Y, torch.stack([t, s]), noises(shape), eta=eta
        )
        at_s = process.coefficients(s)
        assert x.mean().item() == pytest.approx((at_s.alpha * 0.7).item(), abs=0.03)
        assert x.std().item() == pytest.approx(at_s.sigma.item(), rel=0.03)


def test_eta_scales_the_noise():
    """2010.02502, equation 16."""
    process, x = DDPM(), normal(1, 1, 2, 2)
    times = torch.tensor([800.0, 300.0], dtype=torch.float64)
    denoise, a = exact(process), process.coefficients(times).alpha ** 2
    for eta in (0.3, 1.0):
        drawn, still = (
            samplers.ddim(
                denoise, process, x, Y, times, lambda v=v: v * torch.ones_like(x), eta=eta
            )
            for v in (1.0, 0.0)
        )
        sigma = eta * ((1 - a[1]) / (1 - a[0])).sqrt() * (1 - a[0] / a[1]).sqrt()
        assert (drawn - still - sigma).abs().max() < 1e-12
        said = denoise(x, times[0], Y)
        expected = a[1].sqrt() * said.x0 + (1 - a[1] - sigma**2).sqrt() * said.eps
        assert (still - expected).abs().max() < 1e-12


def test_euler_for_ddpm_is_ddim_and_for_flows_the_velocity_step():
    times = DDPM().times(10)
    assert (run("euler", DDPM(), times) - run("ddim", DDPM(), times)).abs().max() < 1e-12
    process, x, y = Flow(), normal(3, 2, 4, 4), torch.arange(3)
    expected, network = x, Toy()
    for t, s in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.0)):
        expected = expected + (s - t) * network(
            expected, torch.full((3,), 1000 * t, dtype=torch.float64), y
        )
    found = run("euler", process, torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64), x=x)
    assert (found - expected).abs().max() < 1e-12


def test_heun_for_flows_is_the_trapezoid_rule():
    x, y, network = normal(3, 2, 4, 4), torch.arange(3), Toy()

    def slope(x, t):
        return network(x, torch.full((3,), 1000 * t, dtype=torch.float64), y)

    first = slope(x, 1.0)
    expected = x - 0.4 * (first + slope(x - 0.4 * first, 0.6)) / 2
    found = run("heun", Flow(), torch.tensor([1.0, 0.6], dtype=torch.float64), x=x)
    assert (found - expected).abs().max() < 1e-12


def test_learned_variance_lies_between_the_fixed_ones():
    x = normal(2, 1, 2, 2)
    t, s = torch.tensor(500.0, dtype=torch.float64), torch.tensor(400.0, dtype=torch.float64)
    step = posterior(DDPM(), x, x, t, s)
    small, large = (samplers.deviation(step, name, None) for name in ("small", "large"))
    assert (small < large).all()
    for fraction, expected in ((0.0, small), (1.0, large), (0.5, (small * large).sqrt())):
        found = samplers.deviation(step, "learned", torch.full_like(x, fraction))
        assert (found / expected - 1).abs().max() < 1e-12


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("process", PROCESSES)
def test_float32_stays_near_float64(process, sampler):
    process = PROCESSES[process]
    denoise, times, y = toy(process, "v", learn_sigma=True), process.times(20), torch.arange(3)
    x = normal(3, 2, 4, 4)
    double = ALL[sampler](denoise, process, x, y, times, noises(x.shape))
    draw = noises(x.shape)
    single = ALL[sampler](denoise, process, x.float(), y, times, lambda: draw().float())
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 1e-3


@pytest.mark.parametrize(
    "copy", [lambda x: x.to("meta"), lambda x: torch.empty(2, device="meta").copy_(x)]
)
def test_copies_are_seen(copy):
    with Copies() as copies:
        copy(torch.zeros(2))
    assert len(copies.found) == 1


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("process", PROCESSES)
def test_no_step_waits_for_the_device_or_copies_to_it(process, sampler):
    """A tensor on the meta device has no values, so that whatever asked for one would fail."""
    process = PROCESSES[process]
    x, y = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    denoise = Denoiser(lambda x, t, y: torch.cat([x, x], dim=1), process, "v", learn_sigma=True)
    guided = cfg(denoise, process, 4.0, 10, interval=(0.2, 0.8), channels=3)
    with Copies() as copies:
        made = ALL[sampler](guided, process, x, y, process.times(6), lambda: torch.empty_like(x))
    assert made.device.type == "meta"
    assert made.shape == x.shape
    assert not copies.found
