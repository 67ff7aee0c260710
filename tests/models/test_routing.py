"""Token routing: what skips, and that kept tokens are computed as if the others were not there."""

import pytest
import torch
from helpers.networks import inputs, perturb, without_gradient

from dit.models.registry import create_model, multiply_adds
from dit.models.routing import kept_tokens, routed_blocks
from dit.models.sizes import SIZES

SHAPE = dict(input_size=16, in_channels=3, num_classes=5)  # 16 tokens of 4 x 4
EVERY = torch.arange(16).expand(3, -1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", dict(depth=4, hidden_size=64, num_heads=2))


def network_of(**changes):
    torch.manual_seed(0)
    return perturb(create_model("DiT-Ti/4", **(SHAPE | changes)))


def some(count=8):
    torch.manual_seed(1)
    return kept_tokens(torch.rand(3, 16), 1 - count / 16)


def masked(network, x, t, y, keep):
    """The same network in plain sight: others keep their values and are not attended to."""
    tokens, c = network.embed(x, t, y)
    others = tokens.shape[1] - 16
    kept = torch.zeros(3, 16).scatter(1, keep, 1.0).bool()
    kept = torch.cat([kept, torch.ones(3, others, dtype=torch.bool)], dim=1)
    for number, block in enumerate(network.blocks):
        if number not in routed_blocks(len(network.blocks)):
            tokens = block(tokens, c)
            continue
        # by itself, each image: its kept tokens alone
        rows = []
        for image in range(3):
            rotation = c.rotation
            if rotation is not None:
                rotation = rotation[:, kept[image, :16]]
            own = c._replace(
                vector=c.vector[image : image + 1],
                tokens=None if c.tokens is None else c.tokens[image : image + 1],
                rotation=rotation,
                modulation=None if c.modulation is None else c.modulation[image : image + 1],
            )
            row = tokens[image].clone()
            row[kept[image]] = block(row[kept[image]][None], own)[0]
            rows.append(row)
        tokens = torch.stack(rows)
    return network.unpatchify(tokens, c, x)


KINDS = [
    dict(),
    dict(block="modern"),
    dict(conditioning="tokens", block="plain+rope"),
    dict(conditioning="cross-attention"),
    dict(conditioning="adaln-single"),
]


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_routing_and_its_gradients_equal_masking(kind):
    network = network_of(**kind).double()
    x, t, y = inputs(size=(16, 16))
    x, t, keep = x.double(), t.double(), some()
    outs = [network(x, t, y, keep), masked(network, x, t, y, keep)]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-9, atol=1e-11)
    assert (outs[0] - network(x, t, y)).abs().max() > 1e-3
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(out.square().sum(), trained) for out in outs]
    for routed, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(routed, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_every_token_is_no_routing(kind):
    network = network_of(**kind)
    x, t, y = inputs(size=(16, 16))
    torch.testing.assert_close(network(x, t, y, EVERY), network(x, t, y))


def test_all_weights_are_trained():
    network = network_of()
    network(*inputs(size=(16, 16)), some()).square().sum().backward()
    assert without_gradient(network) <= {"pos_embed"}


def test_kept_tokens_are_a_random_half_of_each_image_in_order():
    torch.manual_seed(0)
    keep = kept_tokens(torch.rand(2000, 16), 0.5)
    assert keep.shape == (2000, 8)
    assert (keep.diff(dim=1) > 0).all()
    counts = keep.flatten().bincount(minlength=16)
    # binomial with p = 1/2: five standard deviations
    assert (counts - 1000).abs().max() < 5 * (2000 / 4) ** 0.5


def test_blocks_of_the_paper():
    assert routed_blocks(12) == range(2, 9)  # DiT-B: 2 to 8
    assert routed_blocks(28) == range(2, 25)  # DiT-XL: 2 to L - 4
    assert routed_blocks(6) == range(1, 5)
    assert routed_blocks(1) == range(1, 1)  # the only block takes all tokens


def test_work_saved_is_counted():
    """Half of the tokens on 7 of 12 blocks: 29% of the blocks' products (B)."""
    sizes = dict(input_size=32, in_channels=4, num_classes=1000)
    share = multiply_adds("DiT-B/2", route=0.5, **sizes) / multiply_adds("DiT-B/2", **sizes)
    assert share == pytest.approx(1 - 0.5 * 7 / 12, abs=0.03)
