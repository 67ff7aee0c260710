"""Classifier-free guidance."""

import pytest
import torch

from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import cfg
from dit.diffusion.process import DDPM, Flow
from dit.diffusion.samplers import ddpm, heun

NULL = 9
PROCESSES = {"linear": DDPM(), "flow": Flow()}
X = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([1, 2, 3])


class Toy(torch.nn.Module):
    """Nonlinear in the image and the label; remembers the labels of each call."""

    def __init__(self, learn_sigma=False):
        super().__init__()
        self.seen, self.learn_sigma = [], learn_sigma

    def forward(self, x, t, y):
        self.seen.append(y.tolist())
        at = (t / 500 + y).view(-1, 1, 1, 1)
        out = torch.sin(x + at)
        return torch.cat([out, torch.cos(3 * x - at)], dim=1) if self.learn_sigma else out


def toy(process="linear", objective="v", learn_sigma=False):
    return Denoiser(Toy(learn_sigma), PROCESSES[process], objective, learn_sigma)


def at(process, part=0.5):
    return torch.tensor(process.end * part, dtype=torch.float64)


def guided(denoise, scale, part=0.5, **options):
    process = denoise.process
    return cfg(denoise, process, scale, NULL, **options)(X, at(process, part), Y)


def difference(one, other):
    return max((a - b).abs().max() for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("process", PROCESSES)
def test_formula_and_linearity(process, objective):
    """2207.12598, equation 6, for every quantity: unconditional at 0, conditional at 1, straight on beyond."""
    denoise = toy(process, objective)
    conditional = denoise(X, at(denoise.process), Y)
    unconditional = denoise(X, at(denoise.process), torch.full_like(Y, NULL))
    assert difference(guided(denoise, 1.0), conditional) == 0
    assert difference(guided(denoise, 0.0), unconditional) < 1e-12
    for scale in (0.5, 1.5, 4.0):
        expected = [u + scale * (c - u) for c, u in zip(conditional[:3], unconditional[:3], strict=True)]
        assert difference(guided(denoise, scale), expected) < 1e-12


@pytest.mark.parametrize("process", PROCESSES)
def test_guided_prediction_is_consistent(process):
    """Guided data and noise still make x_t, so that samplers may use either."""
    denoise = toy(process)
    said = guided(denoise, 4.0)
    alpha, sigma, *_ = denoise.process.coefficients(at(denoise.process))
    assert (alpha * said.x0 + sigma * said.eps - X).abs().max() < 1e-12


def test_both_halves_in_one_call():
    denoise = toy()
    guided(denoise, 4.0)
    assert denoise.network.seen == [[1, 2, 3, NULL, NULL, NULL]]


def test_scale_1_asks_for_no_unconditional_half():
    denoise = toy()
    guided(denoise, 1.0)
    assert denoise.network.seen == [[1, 2, 3]]


def test_three_channels_are_the_quirk_of_the_release():
    denoise = toy(learn_sigma=True)
    plain, full, three = (
        guided(denoise, *args, **kw) for args, kw in (((1.0,), {}), ((4.0,), {}), ((4.0,), dict(channels=3)))
    )
    for c, f, g in zip(plain[:3], full[:3], three[:3], strict=True):
        assert torch.equal(g[:, :3], f[:, :3])
        assert torch.equal(g[:, 3:], c[:, 3:])
        assert (g[:, :3] - c[:, :3]).abs().min() > 1e-6
    assert difference(guided(denoise, 4.0, channels=4), full) == 0


@pytest.mark.parametrize("options", [{}, dict(channels=3)])
def test_variance_stays_conditional(options):
    denoise = toy(learn_sigma=True)
    conditional = denoise(X, at(denoise.process), Y)
    assert torch.equal(guided(denoise, 4.0, **options).var_fraction, conditional.var_fraction)


@pytest.mark.parametrize("process", PROCESSES)
def test_interval(process):
    denoise = toy(process)
    interval = (0.25, 0.75)
    for part, inside in ((0.2, False), (0.25, True), (0.5, True), (0.75, True), (0.8, False), (1.0, False)):
        denoise.network.seen.clear()
        said = guided(denoise, 4.0, part, interval=interval)
        assert [len(y) for y in denoise.network.seen] == [6 if inside else 3]
        if not inside:
            assert difference(said, denoise(X, at(denoise.process, part), Y)) == 0


def test_sampling_calls_the_network_once_a_step():
    denoise = toy(learn_sigma=True)
    times = denoise.process.times(10)  # 1000, 889, …, 1
    around = cfg(denoise, denoise.process, 2.0, NULL, interval=(0.0, 0.5))
    ddpm(around, denoise.process, X, Y, times, lambda: torch.zeros_like(X), variance="learned")
    assert [len(y) for y in denoise.network.seen] == [3] * 5 + [6] * 5
    denoise.network.seen.clear()
    heun(cfg(denoise, denoise.process, 2.0, NULL), denoise.process, X, Y, times, lambda: X)
    assert [len(y) for y in denoise.network.seen] == [6] * 19


def test_what_a_label_says_does_not_matter_to_a_deaf_network():
    """Guidance of a network that ignores labels changes nothing, at any scale."""
    process = Flow()
    denoise = Denoiser(lambda x, t, y: torch.sin(x), process, "v")
    plain = heun(denoise, process, X, Y, process.times(5), lambda: X)
    assert (
        heun(cfg(denoise, process, 7.5, NULL), process, X, Y, process.times(5), lambda: X) - plain
    ).abs().max() < 1e-12
