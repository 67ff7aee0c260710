"""Edits wrap a denoiser or a sampler; at their limits they are exact for all five samplers."""

from functools import partial

import pytest
import torch
from helpers.diffusion import PROCESSES, noises, normal, time, toy

from dit.diffusion import samplers
from dit.diffusion.editing import (
    between_classes,
    between_noises,
    keep_known,
    slerp,
    starting_at,
)
from dit.diffusion.process import add_noise, target

SHAPE = 3, 2, 4, 4
STEPS = 5
SAMPLERS = {
    "ddpm": samplers.ddpm,
    "ddpm, large": partial(samplers.ddpm, variance="large"),
    "ddim": samplers.ddim,
    "ddim, eta 1": partial(samplers.ddim, eta=1.0),
    "euler": samplers.euler,
    "heun": samplers.heun,
    "dpmpp_2m": samplers.dpmpp_2m,
}
CASES = pytest.mark.parametrize(
    ("process", "sampler"), [(p, s) for p in ("linear", "flow", "shifted") for s in SAMPLERS]
)
Y = torch.tensor([0, 1, 2])


def sample(process, sampler, denoise=None, times=None, seed=1, y=Y):
    """The result of SAMPLERS[sampler]; `sampler` may also be a function."""
    process = PROCESSES[process]
    draw = noises(SHAPE, seed=seed)
    run = SAMPLERS.get(sampler, sampler)
    times = process.times(STEPS) if times is None else times
    return run(denoise or toy(process), process, draw(), y, times, draw)


def inpainted(name, mask, known=None):
    process = PROCESSES[name]
    known = normal(1, *SHAPE[1:], seed=7) if known is None else known
    return keep_known(toy(process), process, process.slope, known, mask)


# -- inpainting ------------------------------------------------------------------------------------


@CASES
def test_what_is_known_comes_out_to_the_bit(process, sampler):
    known = normal(1, *SHAPE[1:], seed=7)
    everything = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    made = sample(process, sampler, inpainted(process, everything, known))
    assert torch.equal(made, known.expand(SHAPE))

    # the first channel, which the network sees in the other one too
    first = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    made = sample(process, sampler, inpainted(process, first, known))
    assert torch.equal(made[:, 0], known.expand(SHAPE)[:, 0])
    plain = sample(process, sampler)
    assert (made - plain)[:, 1].abs().amax(dim=(1, 2)).min() > 1e-3


@CASES
def test_with_nothing_known_it_is_a_sample_to_the_bit(process, sampler):
    nothing = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    made = sample(process, sampler, inpainted(process, nothing))
    assert torch.equal(made, sample(process, sampler))


@pytest.mark.parametrize("process", PROCESSES)
def test_the_edited_prediction_stays_consistent(process):
    """x_t = alpha x0 + sigma eps, and `out` is what a network of the objective would predict."""
    name, process = process, PROCESSES[process]
    x_t, t = normal(*SHAPE), time(0.6 * process.end)
    mask = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    edited = inpainted(name, mask)(x_t, t, Y)
    assert (add_noise(process, edited.x0, edited.eps, t) - x_t).abs().max() < 1e-12
    out = target(process, process.slope, edited.x0, edited.eps, t)
    assert (edited.out - out).abs().max() < 1e-12

    known, plain = normal(1, *SHAPE[1:], seed=7), toy(process)(x_t, t, Y).x0
    assert torch.allclose(edited.x0, mask * known + (1 - mask) * plain, rtol=0, atol=1e-12)


# -- variations ------------------------------------------------------------------------------------


@CASES
def test_a_start_at_time_0_returns_the_image(process, sampler):
    image = normal(1, *SHAPE[1:], seed=7)
    started = starting_at(SAMPLERS[sampler], image)
    made = sample(process, started, times=PROCESSES[process].times(STEPS)[-1:])
    assert torch.equal(made, image.expand(SHAPE))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_start_at_pure_noise_is_a_sample_to_the_bit(sampler):
    started = starting_at(SAMPLERS[sampler], normal(1, *SHAPE[1:], seed=7))
    assert torch.equal(sample("flow", started), sample("flow", sampler))


@CASES
def test_a_start_between_is_that_of_the_noised_image(process, sampler):
    of = PROCESSES[process]
    times = of.times(STEPS)[2:]
    image = normal(1, *SHAPE[1:], seed=7)
    made = sample(process, starting_at(SAMPLERS[sampler], image), times=times)

    draw = noises(SHAPE)
    x_t = add_noise(of, image.expand(SHAPE), draw(), times[0])
    assert torch.equal(made, SAMPLERS[sampler](toy(of), of, x_t, Y, times, draw))


# -- interpolation ---------------------------------------------------------------------------------


@CASES
def test_the_ends_of_an_interpolation_are_both_samples_to_the_bit(process, sampler):
    other = torch.tensor([4, 4, 4])
    weight = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    denoise = between_classes(toy(PROCESSES[process]), other, weight)
    between = between_noises(SAMPLERS[sampler], lambda: noises(SHAPE, seed=50), weight)
    made = sample(process, between, denoise)

    assert torch.equal(made[0], sample(process, sampler)[0])
    assert torch.equal(made[2], sample(process, sampler, seed=50, y=other)[2])
    assert (made[1] - sample(process, sampler)[1]).abs().max() > 1e-3


def test_a_prediction_between_classes_is_on_the_line_of_both():
    process = PROCESSES["flow"]
    denoise, t, x_t = toy(process), time(0.4), normal(*SHAPE)
    other = torch.tensor([4, 4, 4])
    mixed = between_classes(denoise, other, torch.full([3], 0.25).double())(x_t, t, Y)
    of_one, of_other = denoise(x_t, t, Y), denoise(x_t, t, other)
    for name in ("x0", "eps", "out"):
        expected = 0.75 * getattr(of_one, name) + 0.25 * getattr(of_other, name)
        assert (getattr(mixed, name) - expected).abs().max() < 1e-12


def test_slerp_goes_along_the_arc_at_constant_speed():
    a, b = normal(1, 2, 30, 30), normal(1, 2, 30, 30, seed=9)
    # of one length, so that the arc is a circle's
    b *= a.norm() / b.norm()
    weights = torch.linspace(0, 1, 11, dtype=torch.float64)
    arc = slerp(a.expand(11, -1, -1, -1), b.expand(11, -1, -1, -1), weights).flatten(1)
    assert (arc.norm(dim=1) - a.norm()).abs().max() < 1e-9
    steps = arc.diff(dim=0).norm(dim=1)
    assert (steps - steps[0]).abs().max() < 1e-9
    # normal draws are nearly orthogonal: a line would shorten the middle to 0.71
    assert (a + b).norm() / 2 / a.norm() < 0.8


def test_slerp_of_a_draw_and_itself_stays_there():
    a = normal(*SHAPE)
    weight = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    assert (slerp(a, a, weight) - a).abs().max() < 1e-12
