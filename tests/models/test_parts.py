"""The inner head of a network, and the tokens of its early block."""

import pytest
import torch
from helpers.networks import inputs, perturb, without_gradient

from dit.errors import UserError
from dit.models.parts import BothHeads, early_block, late_block
from dit.models.registry import create_model, describe_network, multiply_adds
from dit.models.routing import kept_tokens, routed_blocks
from dit.models.sizes import SIZES
from dit.runs.card import NetworkSpec

SHAPE = dict(input_size=16, in_channels=3, num_classes=5)  # 16 tokens of 4 x 4
KINDS = [
    dict(),
    dict(block="modern", learn_sigma=True),
    dict(conditioning="tokens", block="plain+rope"),
    dict(conditioning="cross-attention"),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", dict(depth=7, hidden_size=64, num_heads=2))


def network_of(**changes):
    torch.manual_seed(0)
    return perturb(create_model("DiT-Ti/4", **(SHAPE | changes)))


def test_blocks_of_the_papers():
    assert [early_block(depth) for depth in (12, 24, 28)] == [4, 7, 8]
    assert [late_block(depth) for depth in (12, 24, 28)] == [8, 17, 20]
    for depth in range(1, 100):
        assert 1 <= early_block(depth) <= late_block(depth) <= depth
        # `run_routed` reads no later block
        assert early_block(depth) <= max(routed_blocks(depth).stop, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_inner_head_is_a_last_layer_of_a_shorter_network(kind):
    """A network of the first blocks alone, with the inner head as its last layer."""
    network = network_of(**kind, inner_head=True)
    x, t, y = inputs(size=(16, 16))
    found = network(x, t, y, None, True)
    assert torch.equal(found.out, network(x, t, y))
    assert found.tokens.shape == (3, 16, 64)

    SIZES["Ti"]["depth"] = early_block(7)
    short = create_model("DiT-Ti/4", **(SHAPE | kind))
    theirs = network.state_dict()
    for name in list(theirs):
        if name.startswith("inner_final_layer."):
            theirs[name.removeprefix("inner_")] = theirs.pop(name)
    short.load_state_dict({name: theirs[name] for name in short.state_dict()})
    assert torch.equal(found.inner, short(x, t, y))
    assert (found.inner - found.out).abs().max() > 1e-3
    out, inner = BothHeads(network)(x, t, y)
    assert torch.equal(out, found.out)
    assert torch.equal(inner, found.inner)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_every_token_reads_the_same_parts(kind):
    network = network_of(**kind, inner_head=True)
    x, t, y = inputs(size=(16, 16))
    every = torch.arange(16).expand(3, -1)
    for one, other in zip(network(x, t, y, None, True), network(x, t, y, every, True), strict=True):
        torch.testing.assert_close(one, other)


def test_tokens_that_skip_are_read_as_they_came_to_the_middle():
    network = network_of(inner_head=True)
    x, t, y = inputs(size=(16, 16))
    keep = kept_tokens(torch.rand(3, 16, generator=torch.Generator().manual_seed(1)), 0.5)
    tokens, c = network.embed(x, t, y)
    entry = network.blocks[0](tokens, c)
    kept = network.blocks[1](entry.gather(1, keep[..., None].expand(-1, -1, 64)), c)
    assert (early_block(7), routed_blocks(7).start) == (2, 1)
    expected = entry.clone()
    for image, ids in enumerate(keep):
        expected[image, ids] = kept[image]
    torch.testing.assert_close(network(x, t, y, keep, True).tokens, expected)


def test_the_inner_head_trains_the_first_blocks_alone():
    network = network_of(inner_head=True)
    network(*inputs(size=(16, 16)), None, True).inner.square().sum().backward()
    late = {name for name, _ in network.named_parameters() if name.startswith("blocks.")}
    late -= {name for name in late if int(name.split(".")[1]) < early_block(7)}
    final = {name for name, _ in network.named_parameters() if name.startswith("final_layer.")}
    assert without_gradient(network) == late | final | {"pos_embed"}


def test_without_it_nothing_is_another():
    """Fresh weights, names and predictions."""
    x, t, y = inputs(size=(16, 16))
    plain, headed = network_of(), network_of(inner_head=True)
    assert plain(x, t, y, None, True).inner is None
    own = {name for name in headed.state_dict() if name.startswith("inner_final_layer.")}
    assert headed.state_dict().keys() - own == plain.state_dict().keys()
    assert "an inner head after block 2" in describe_network(headed)
    assert "inner head" not in describe_network(plain)
    assert multiply_adds("DiT-Ti/4", **SHAPE) == multiply_adds("DiT-Ti/4", inner_head=True, **SHAPE)


def test_only_a_dit_has_one():
    with pytest.raises(UserError, match="--inner-head with --model UNet-S"):
        create_model("UNet-S", **SHAPE, inner_head=True)
    with pytest.raises(UserError, match="--inner-head with --model UNet-S"):
        NetworkSpec(model="UNet-S", **SHAPE, learn_sigma=False, inner_head=True)
