"""Compiled networks compute what eager ones do: each lever, as training calls it."""

import pytest
import torch
from helpers.networks import inputs, perturb
from torch.utils._pytree import tree_leaves

from dit.models.registry import create_model
from dit.models.routing import kept_tokens
from dit.models.sizes import SIZES

SHAPE = dict(input_size=16, in_channels=3, num_classes=5)  # 16 tokens of 4 x 4
HALF = kept_tokens(torch.rand(3, 16, generator=torch.Generator().manual_seed(1)), 0.5)
KINDS = {
    "modern": (dict(block="modern"), ()),
    "tokens": (dict(block="modern", conditioning="tokens"), ()),
    "adaln-single": (dict(conditioning="adaln-single"), ()),
    "routed": (dict(block="modern"), (HALF,)),
    "inner-head": (dict(block="modern", inner_head=True), (None, True)),
}


def outputs_and_gradients(network, call, given):
    """Return what a network predicts, then the gradients of its weights."""
    network.zero_grad()
    outputs = [part for part in tree_leaves(call(*given)) if part is not None]
    sum(part.square().sum() for part in outputs).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return [*(part.detach() for part in outputs), *gradients]


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_eager(kind, monkeypatch):
    """In float64, where another order of the same operations hardly rounds otherwise."""
    options, more = KINDS[kind]
    depth = 3 if kind == "routed" else 2  # a middle block to skip
    monkeypatch.setitem(SIZES, "Ti", dict(depth=depth, hidden_size=64, num_heads=2))
    torch.manual_seed(0)
    network = perturb(create_model("DiT-Ti/4", **SHAPE, **options)).double()
    x, t, y = inputs(size=(16, 16))
    given = (x.double(), t.double(), y, *more)

    torch.compiler.reset()
    # a whole graph: what the compiler left to Python would be eager on both sides
    compiled = torch.compile(network, backend="aot_eager", dynamic=False, fullgraph=True)
    expected = outputs_and_gradients(network, network, given)
    found = outputs_and_gradients(network, compiled, given)
    assert len(found) == len(expected) > 20
    for one, other in zip(found, expected, strict=True):
        largest = other.abs().max().item()
        assert largest > 0
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * largest)
