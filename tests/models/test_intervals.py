"""Networks that take the length of a step: fresh they are those without; their derivative."""

import pytest
import torch
from helpers.networks import TEXT_WIDTH, inputs, perturb, without_gradient

from dit.models import embeddings
from dit.models.attention_maps import attention_maps
from dit.models.conditioning import CONDITIONINGS
from dit.models.registry import create_model, describe_network, zero_inputs
from dit.models.sizes import SIZES
from dit.models.tangent import plain_attention, tangent

SHAPE = dict(input_size=8, in_channels=3, num_classes=5)
KINDS = [
    *[dict(conditioning=way) for way in CONDITIONINGS],
    dict(block="modern"),
    dict(block="modern", conditioning="tokens"),
    dict(time_scale=1e-3),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", dict(depth=2, hidden_size=64, num_heads=2))


def network_of(**changes):
    torch.manual_seed(0)
    width = TEXT_WIDTH if changes.get("conditioning") == "text" else None
    return create_model("DiT-Ti/4", **{**SHAPE, "text_width": width, **changes})


def steps(t):
    """Times with three lengths of steps that end there."""
    return torch.stack([t, t * torch.linspace(0, 1, len(t), dtype=t.dtype)], dim=1)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fresh_and_with_the_weights_of_a_flow_a_network_does_not_hear_the_length(kind):
    flow, averaging = network_of(**kind), network_of(interval=True, interval_smoothing=0.0, **kind)
    own = averaging.state_dict()
    assert {name: own[name] for name in flow.state_dict()}.keys() == flow.state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in flow.state_dict().items())

    averaging.load_state_dict(perturb(flow).state_dict(), strict=False)
    x, t, y = inputs(kind.get("conditioning"))
    for times in (t, steps(t)):
        assert torch.equal(averaging(x, times, y), flow(x, t, y))


def test_a_trained_network_hears_the_length_and_times_alone_are_steps_without():
    network = perturb(network_of(interval=True))
    x, t, y = inputs()
    assert torch.equal(network(x, t, y), network(x, torch.stack([t, 0 * t], dim=1), y))
    changed = network(x, steps(t), y) - network(x, t, y)
    assert not changed[0].any()  # of length 0
    assert changed[1:].abs().amax(dim=(1, 2, 3)).gt(1e-4).all()


@pytest.mark.parametrize("time_scale", [1.0, 0.1])
def test_waves_are_means_over_normal_times(time_scale):
    embedder = embeddings.IntervalEmbedder(16).double()
    flow = embeddings.TimestepEmbedder(16).double()
    embedder.time_scale = flow.time_scale = time_scale
    # the trapezoid rule converges faster than any power for a normal density
    nodes = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    weights = torch.exp(-nodes.square() / 2)
    for t in (0.0, 130.0, 977.0):
        waves = flow.waves(t + embedder.smoothing * nodes)
        expected = (weights[:, None] * waves).sum(0) / weights.sum()
        found = embedder.waves(torch.tensor([t], dtype=torch.float64))[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_waves_are_nearly_as_slow_as_those_of_sit():
    """There the fastest wave of times in 0 … 1 is sin t, with a slope of 1."""
    embedder = embeddings.IntervalEmbedder(16).double()
    t = torch.linspace(0, 1000, 2001, dtype=torch.float64)
    seconds = torch.full_like(t, 1000)
    _, slopes = torch.func.jvp(embedder.exact_waves, (t,), (seconds,))
    assert 0.5 < slopes.abs().max() < 3


def test_waves_are_rounded_once():
    """For weights in bfloat16: means in float32, then one rounding."""
    embedder = embeddings.IntervalEmbedder(16)
    t = torch.linspace(0, 1000, 101)
    exact = embedder.waves(t)
    assert exact.dtype == torch.float32
    assert torch.equal(embedder.bfloat16().waves(t), exact.bfloat16())


def test_a_network_changes_as_slowly_with_time_as_its_waves_do():
    """Without the means, the fastest wave turns once in 6 of 1000 units of time."""
    x, t, y = inputs()
    derivatives = []
    for interval in (False, True):
        network = perturb(network_of(interval=interval))
        derivatives.append(tangent(network, x, t, y, torch.zeros_like(x), torch.ones_like(t)))
    flow, averaging = (part.square().mean().sqrt() for part in derivatives)
    assert averaging < flow / 5


def test_every_weight_is_trained():
    network = perturb(network_of(interval=True))
    x, t, y = inputs()
    network(x, steps(t), y).square().mean().backward()
    assert without_gradient(network) == {"pos_embed"}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_derivative_is_that_of_central_differences(kind):
    network = perturb(network_of(interval=True, **kind)).double()
    x, t, y = inputs(kind.get("conditioning"))
    x, t = x.double(), steps(t.double())
    y = y.double() if y.is_floating_point() else y
    dx, dt = torch.randn_like(x), torch.randn_like(t)

    h = 1e-5
    with torch.no_grad():
        after, before = network(x + h * dx, t + h * dt, y), network(x - h * dx, t - h * dt, y)
    expected = (after - before) / (2 * h)
    found = tangent(network, x, t, y, dx, dt)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))


def test_attention_is_written_out_for_the_derivative_alone():
    network = network_of(interval=True, conditioning="cross-attention")
    every = [module for module in network.modules() if hasattr(module, "fused_attn")]
    assert len(every) == 4
    assert all(module.fused_attn for module in every)
    every[0].fused_attn = False
    with plain_attention(network):
        assert not any(module.fused_attn for module in every)
    assert [module.fused_attn for module in every] == [False, True, True, True]


def test_inputs_and_words_of_such_a_network():
    spec = dict(SHAPE, interval=True)
    x, t, y = zero_inputs("DiT-Ti/4", 2, 0, **spec)
    network = network_of(interval=True)
    assert t.shape == (2, 2)
    assert network(x, t, y).shape == (2, 3, 8, 8)
    assert "times with lengths" in describe_network(network)
    assert "lengths" not in describe_network(network_of())
    with attention_maps(network, [0]) as maps:
        network(x, t, y)
    assert maps[0].shape == (2, 4, 4)
