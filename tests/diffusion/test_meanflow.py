"""MeanFlow: pairs of times, the loss against its equation, guidance, and exact steps."""

import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers.diffusion import normal, seeded
from helpers.networks import perturb

from dit.diffusion import samplers
from dit.diffusion.meanflow import (
    IntervalFlow,
    MeanFlowLoss,
    forward_passes,
    interval,
    moving_rows,
    steps_between,
)
from dit.diffusion.objective import diffusion_loss
from dit.diffusion.process import Denoiser, Flow
from dit.models.registry import create_model
from dit.models.sizes import SIZES
from dit.models.tangent import tangent

NULL = 5
B = 4


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", dict(depth=2, hidden_size=32, num_heads=2))
    torch.manual_seed(0)
    shape = dict(input_size=8, in_channels=2, num_classes=NULL, interval=True, time_scale=0.01)
    return perturb(create_model("DiT-Ti/4", **shape)).double()


def batch():
    x0, eps = normal(B, 2, 8, 8, seed=1), normal(B, 2, 8, 8, seed=2)
    t = torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    y, uniforms = torch.tensor([0, 3, NULL, 2]), torch.tensor([[0.1], [0.4], [0.7], [0.0]]).double()
    return x0, y, t, eps, uniforms


def loss_of(network, **options):
    along = partial(tangent, network)
    return MeanFlowLoss(network, along, IntervalFlow("uniform"), NULL, **options)


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "logit-normal"])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.67])
def test_pairs_of_times_are_two_draws_in_order(sampling, shift):
    n = 40_000
    flow = IntervalFlow(sampling, shift)
    t = flow.sample_time(n, seeded(1))
    r = flow.earlier(t, torch.rand(n, generator=seeded(2)))
    assert t.dtype == r.dtype == torch.float64
    assert ((r >= 0) & (r <= t) & (t <= 1)).all()

    one, two = Flow(sampling, shift).sample_time(2 * n, seeded(3)).chunk(2)
    for found, expected in (
        (t, torch.maximum(one, two)),
        (r, torch.minimum(one, two)),
        (t - r, (one - two).abs()),
    ):
        # Kolmogorov and Smirnov: the largest difference of two empirical distributions; the bound
        # is passed by all but one in a million (2 exp(-n d^2) = 1e-6)
        at = torch.linspace(0, 1, 2000, dtype=torch.float64)
        share = [torch.searchsorted(part.sort().values, at) / n for part in (found, expected)]
        assert (share[0] - share[1]).abs().max() < math.sqrt(math.log(2e6) / n)


def test_the_earlier_time_is_a_quantile_of_the_draws_below_the_later():
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    flow = IntervalFlow("uniform")
    torch.testing.assert_close(flow.earlier(t, torch.full((2,), 0.25)), 0.25 * t)
    flow = IntervalFlow("logit-normal", 2.0)
    ends = flow.earlier(t, torch.tensor([0.0, 1 - 2**-24]))
    assert ends[0] == 0
    assert ends[1] == pytest.approx(0.9, abs=1e-6)
    # half of the draws below t = 2/3 (the median, shifted by 2) are below the lower quartile
    quartile = torch.special.ndtri(torch.tensor(0.25, dtype=torch.float64)).sigmoid()
    found = flow.earlier(torch.tensor([2 / 3], dtype=torch.float64), torch.tensor([0.5]))
    torch.testing.assert_close(found, (2 * quartile / (1 + quartile))[None])


@pytest.mark.parametrize("images", [1, 2, 8, 60, 64])
@pytest.mark.parametrize("instant", [0.0, 0.5, 0.75, 1.0, 0.3])
def test_images_with_a_length_are_evenly_spread(images, instant):
    rows = moving_rows(images, instant).tolist()
    assert len(rows) == math.floor(images * (1 - instant) + 1e-6)
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(images))
    if images * instant % 1 == 0:
        # parts of a batch choose as the batch does
        twice = moving_rows(2 * images, instant).tolist()
        assert twice == rows + [images + row for row in rows]


# -- the loss --------------------------------------------------------------------------------------


def velocity(network, x, t, y):
    return network(x, torch.stack([1000 * t, 0 * t], dim=1), y)


def by_differences(network, x, t, r, y, along, h=1e-5):
    """du/dt along (along, 0, 1) by central differences."""

    def u(shift):
        times = torch.stack([1000 * (t + shift), 1000 * (t + shift - r)], dim=1)
        return network(x + shift * along, times, y)

    return (u(h) - u(-h)) / (2 * h)


def expected_loss(network, classic, instant, scale=1.0, mix=0.0):
    """The loss of 2505.13447 and 2512.02012 image by image, written anew."""
    x0, y, t, eps, uniforms = batch()
    moving = moving_rows(B, instant).tolist()
    found = []
    for i in range(B):
        one = slice(i, i + 1)
        x, c, time = (1 - t[i]) * x0[one] + t[i] * eps[one], y[one], t[one]
        start = uniforms[i] * time if i in moving else time
        v = eps[one] - x0[one]
        with torch.no_grad():
            own = velocity(network, x, time, c)
            if scale != 1 and int(c) != NULL:
                weak = velocity(network, x, time, torch.tensor([NULL]))
                w = scale * (1 - mix)
                v = w * v + (1 - w - mix) * weak + mix * own
            along = v if classic else own
            du = by_differences(network, x, time, start, c, along)
        u = network(x, torch.stack([1000 * time, 1000 * (time - start)], dim=1), c)
        if classic:
            error = u - (v - (time - start) * du)
            total = error.square().sum()
            found.append(total / (total.detach() + 0.01))
        else:
            found.append((u + (time - start) * du - v).square().mean())
    return torch.stack(found)


OPTIONS = [
    dict(classic=False, instant=0.5),
    dict(classic=False, instant=0.0),
    dict(classic=True, instant=0.75),
    dict(classic=True, instant=0.0),
    dict(classic=False, instant=0.5, scale=2.0, mix=0.5),
    dict(classic=True, instant=0.5, scale=2.5, mix=0.92),
    dict(classic=False, instant=0.5, scale=2.0, mix=0.0),
    dict(classic=True, instant=0.5, scale=2.0, mix=0.0),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradient_are_those_of_the_equation_by_differences(network, options):
    parameters = [p for p in network.parameters() if p.requires_grad]
    loss = loss_of(network, **options)(*batch())
    expected = expected_loss(network, **options)
    torch.testing.assert_close(loss.each, expected, rtol=1e-6, atol=0)

    found = torch.autograd.grad(loss.mean, parameters)
    for one, other in zip(found, torch.autograd.grad(expected.mean(), parameters), strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * scale)


def test_the_term_of_the_classic_loss_is_its_error_without_weights(network):
    error = loss_of(network, classic=True)(*batch()).terms["mse"] * 2 * 8 * 8
    expected = expected_loss(network, classic=True, instant=0.5)
    torch.testing.assert_close(error / (error + 0.01), expected, rtol=1e-6, atol=0)


def test_with_steps_of_length_0_alone_it_is_flow_matching_to_the_bit(network):
    *inputs, uniforms = batch()
    flow = diffusion_loss(Denoiser(network, Flow(), "v"), *inputs)
    found = loss_of(network, instant=1.0)(*inputs, uniforms)
    assert torch.equal(found.each, flow.each)
    # each form differs by its weights alone
    classic = loss_of(network, instant=1.0, classic=True)(*inputs, uniforms)
    assert torch.equal(classic.terms["mse"], flow.each)


@pytest.mark.parametrize("classic", [False, True])
def test_the_average_velocity_of_single_data_has_no_loss(classic):
    """All data at m: v(x, t) = (x - m) / t is constant along each line, and so is u."""
    m = 0.3

    def exact(x, times, y):
        return (x - m) / (times[:, :1, None, None] / 1000)

    along = tangent_of(exact)
    loss = MeanFlowLoss(exact, along, IntervalFlow("uniform"), NULL, classic, instant=0.0)
    x0, y, t, eps, uniforms = batch()
    each = loss(torch.full_like(x0, m), y, t, eps, uniforms).terms["mse"]
    assert each.max() < 1e-20


def test_the_average_velocity_of_a_gaussian_is_its_own_target():
    """Data N(0, s^2): x_t follows sqrt((1 - t)^2 s^2 + t^2), so that u is known in closed form.

    With the improved form's direction, u + (t - r) du/dt is the marginal velocity at t.
    """
    loss = MeanFlowLoss(gaussian, tangent_of(gaussian), IntervalFlow("uniform"), NULL, instant=0.0)
    x0, y, t, eps, uniforms = batch()
    x_t = (1 - t.view(-1, 1, 1, 1)) * x0 + t.view(-1, 1, 1, 1) * eps
    r = loss.process.earlier(t, uniforms[:, 0])
    rows = torch.arange(B)
    _, moved = loss.targets(x_t, y, t, r, eps - x0, rows)
    found = gaussian(x_t, interval(loss.process, t, r, x_t), y) + moved
    expected = gaussian(x_t, interval(loss.process, t, t, x_t), y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def spread(t, s=0.5):
    return ((1 - t) ** 2 * s**2 + t**2).sqrt()


def gaussian(x, times, y):
    """The average velocity of data N(0, 0.25) from times and lengths."""
    t, length = (part[:, None, None, None] / 1000 for part in times.unbind(1))
    r = t - length
    at = ((t - 1) * 0.25 + t) / spread(t) ** 2  # d log spread / dt
    average = (1 - spread(r) / spread(t)) / length.clamp(min=1e-9)
    return x * torch.where(length == 0, at, average)


def test_rules_of_derivatives_are_loaded_without_a_warning():
    code = "from dit.models.tangent import load_rules; load_rules()"
    subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], check=True)


def tangent_of(function):
    def along(x, times, y, dx, dt):
        return torch.func.jvp(lambda x, t: function(x, t, y), (x, times), (dx, dt))[1]

    return along


# -- guidance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "mix"), [(2.0, 0.5), (2.5, 0.92), (3.0, 0.0), (4.0, 0.75)])
def test_the_learned_guidance_is_that_of_its_scale_whatever_the_mix(scale, mix):
    """The velocity that predicts its own target is v_null + scale (v - v_null)."""
    v, null = normal(1, 2, 4, 4, seed=1), normal(1, 2, 4, 4, seed=2)
    fixed = null + scale * (v - null)

    def network(x, times, y):
        return null if int(y) == NULL else fixed

    loss = MeanFlowLoss(network, None, IntervalFlow(), NULL, scale=scale, mix=mix)
    t = torch.tensor([0.4], dtype=torch.float64)
    x = torch.zeros_like(v)
    found = loss.guided_velocity(x, t, torch.tensor([0]), v, fixed)
    torch.testing.assert_close(found, fixed, rtol=1e-12, atol=1e-12)
    # images of the null class are trained as without guidance
    assert torch.equal(loss.guided_velocity(x, t, torch.tensor([NULL]), v, null), v)


# -- cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_passes_are_those_that_are_computed(network, options):
    images = []

    def counted(x, times, y):
        images.append(len(x))
        return network(x, times, y)

    def along(x, *others):
        images.append(2 * len(x))
        return tangent(network, x, *others)

    MeanFlowLoss(counted, along, IntervalFlow("uniform"), NULL, **options)(*batch())
    options = {"scale": 1.0, "mix": 0.0, **options}
    assert sum(images) / B - 1 == forward_passes(**options)


# -- sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("shift", "spacing"), [(1.0, "uniform"), (3.0, "cosine")])
def test_with_the_exact_average_velocity_any_number_of_steps_is_exact(steps, shift, spacing):
    flow = IntervalFlow(shift=shift)
    times = flow.times(steps, spacing)
    denoise = steps_between(Denoiser(gaussian, flow, "v"), times)
    noise, y = normal(3, 2, 4, 4), torch.zeros(3, dtype=torch.long)
    x = samplers.euler(denoise, flow, noise, y, times, lambda: noise)
    torch.testing.assert_close(x, 0.5 * noise, rtol=1e-12, atol=1e-12)
