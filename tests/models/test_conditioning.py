"""Kinds of conditioning (2212.09748, section 3.2): dependencies, relations, initial states."""

import math

import pytest
import torch
from helpers.networks import (
    changed_images,
    fresh_dit,
    inputs,
    perturbed_dit,
    without_gradient,
)
from torch.nn import functional

from dit.models.conditioning import CONDITIONINGS, CrossAttention
from dit.models.embeddings import Condition
from dit.models.initial_weights import init_weights

OF_CLASSES = [name for name in CONDITIONINGS if name != "text"]


def block_inputs(condition_tokens=2):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 16, generator=generator)
    vector = torch.randn(2, 16, generator=generator)
    return x, Condition(vector, torch.randn(2, condition_tokens, 16, generator=generator))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_shapes_at_rectangles_and_after_resizing(conditioning, learn_sigma):
    network = perturbed_dit(conditioning, input_size=(8, 16), learn_sigma=learn_sigma)
    out = network(*inputs(conditioning, size=(8, 16)))
    assert out.shape == (3, 6 if learn_sigma else 3, 8, 16)
    network.resize((12, 4))
    assert network(*inputs(conditioning, size=(12, 4))).shape[2:] == (12, 4)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_output_of_a_fresh_network_is_zero(conditioning):
    assert not fresh_dit(conditioning)(*inputs(conditioning)).any()


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.portable
def test_each_image_depends_on_its_own_time_and_class(conditioning):
    network, (x, t, y) = perturbed_dit(conditioning), inputs(conditioning)
    later, other = t.clone(), y.clone()
    later[1], other[2] = later[1] + 100, y[0]
    out = network(x, t, y)
    assert changed_images(network(x, later, y), out) == [False, True, False]
    assert changed_images(network(x, t, other), out) == [False, False, True]


IN_EACH_BLOCK = sorted({*CONDITIONINGS} - {"in-context", "tokens", "adaln-single"})


@pytest.mark.parametrize("conditioning", IN_EACH_BLOCK)
@pytest.mark.parametrize("cut", [0, 1])
def test_every_block_is_conditioned(conditioning, cut):
    """Either of two blocks passes on time and class, where all else is cut off from them."""
    network, (x, t, y) = perturbed_dit(conditioning), inputs(conditioning)
    conditioned = ("adaLN_modulation.1.weight", "cross_attn.proj.weight", "text_attn.proj.weight")
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith(conditioned) and name.startswith((f"blocks.{cut}.", "final_layer.")):
                p.zero_()
    out = network(x, t, y)
    assert (network(x, t + 100, y) - out).abs().max() > 1e-4
    assert (network(x, t, y.flip(0)) - out).abs().max() > 1e-4


class ImageAttention(torch.nn.Module):
    """Attention among the image's tokens only."""

    def __init__(self, attention, count):
        super().__init__()
        self.attention, self.count = attention, count

    def forward(self, x, rotation):
        attended = self.attention(x[:, : self.count], rotation)
        return torch.cat([attended, torch.zeros_like(x[:, self.count :])], dim=1)


@pytest.mark.parametrize("conditioning", ["in-context", "tokens"])
def test_in_context_conditions_by_self_attention_alone(conditioning):
    network, (x, t, y) = perturbed_dit(conditioning), inputs(conditioning)
    for block in network.blocks:
        block.attn = ImageAttention(block.attn, 4)
    assert torch.equal(network(x, t, y), network(x, t + 100, y.flip(0)))


def test_cross_attention_is_its_printed_formula():
    """Softmax(q k^T / sqrt(d)) v of each head (1706.03762, equation 1); fused and plain alike."""
    torch.manual_seed(0)
    attention = CrossAttention(16, 2).double()
    x, tokens = torch.randn(2, 4, 16).double(), torch.randn(2, 3, 16).double()
    q, (k, v) = attention.q(x), attention.kv(tokens).chunk(2, dim=-1)
    heads = []
    for h in (slice(0, 8), slice(8, 16)):
        weights = (q[..., h] @ k[..., h].mT / math.sqrt(8)).softmax(-1)
        heads.append(weights @ v[..., h])
    expected = attention.proj(torch.cat(heads, dim=-1))
    for attention.fused_attn in (True, False):
        assert (attention(x, tokens) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("conditioning", ["cross-attention", "text"])
def test_the_order_of_condition_tokens_does_not_matter(conditioning):
    block, (x, c) = perturbed_dit(conditioning).double().blocks[0], block_inputs(5)
    x, c = x.double(), Condition(c.vector.double(), c.tokens.double())
    out = block(x, c)
    assert (block(x, c._replace(tokens=c.tokens.flip(1))) - out).abs().max() < 1e-12
    assert (block(x, c._replace(tokens=c.tokens[:, :4])) - out).abs().max() > 1e-4


@pytest.mark.portable
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.portable
def test_padding_of_text_changes_nothing(fused):
    network, (x, t, y) = perturbed_dit("text"), inputs("text")
    for block in network.blocks:
        block.text_attn.fused_attn = fused
    y[1, 4:] = 0  # a shorter caption
    y[2] = 0  # an empty one, of which the first token counts
    lengths = (7, 4, 1)
    alone = []
    for i, length in enumerate(lengths):
        one = slice(i, i + 1)
        alone.append(network(x[one], t[one], y[one, :length]))
    padded = network(x, t, torch.cat([y, torch.zeros(3, 5, 12)], dim=1))
    assert padded.isfinite().all()
    assert (padded - torch.cat(alone)).abs().max() < 1e-5

    c = network.condition(t, y)
    assert c.mask.sum(1).tolist() == [*lengths]
    block, h = network.blocks[0], torch.randn(3, 4, 16)
    unmasked = block(h, c._replace(mask=None))
    assert (unmasked - block(h, c))[1].abs().max() > 1e-3
    full = c._replace(mask=torch.ones_like(c.mask))
    assert (unmasked - block(h, full)).abs().max() < 1e-5


@pytest.mark.parametrize("conditioning", ["adaln-zero", "text"])
def test_a_fresh_block_with_gates_is_the_identity(conditioning):
    x, c = block_inputs()
    assert all(torch.equal(block(x, c), x) for block in fresh_dit(conditioning).blocks)
    assert not any(torch.allclose(block(x, c), x) for block in perturbed_dit(conditioning).blocks)


def test_fresh_adaln_and_plain_blocks_are_the_same():
    """Zero modulation is shift 0 and scale 1, as a fresh affine norm has."""
    adaptive, plain = fresh_dit("adaln").blocks[0], fresh_dit("in-context").blocks[0]
    adaptive.load_state_dict(plain.state_dict(), strict=False)
    x, c = block_inputs()
    assert (adaptive(x, c) - plain(x, c)).abs().max() < 1e-6
    assert not torch.allclose(adaptive(x, c), x)


def test_adaln_single_is_adaln_zero_with_one_matrix_for_all_blocks():
    """The table of a block is what differs in the biases."""
    single = perturbed_dit("adaln-single").double()
    zero, (x, c) = perturbed_dit("adaln-zero").double(), block_inputs()
    shared, x = single.context.modulation[1], x.double()
    time, label = torch.randn(2, 2, 16, dtype=torch.float64)
    c = single.context(time, label)
    assert torch.equal(c.vector, time + label)
    assert c.tokens is None
    for one, other in zip(single.blocks, zero.blocks, strict=True):
        other.load_state_dict(one.state_dict(), strict=False)
        other.adaLN_modulation[1].load_state_dict(
            {"weight": shared.weight, "bias": shared.bias + one.adaLN_table.flatten()}
        )
        assert (one(x, c) - other(x, c)).abs().max() < 1e-12
        assert (one(x, c) - one(x, c._replace(modulation=c.modulation.flip(1)))).any()


def test_the_last_layer_of_adaln_single_adds_its_table_to_time_and_class():
    layer, (x, c) = perturbed_dit("adaln-single").double().final_layer, block_inputs()
    x, vector = x.double(), c.vector.double()
    normed = functional.layer_norm(x, (16,), eps=1e-6)
    shift, scale = (vector + row for row in layer.adaLN_table)
    expected = layer.linear(normed * (1 + scale[:, None]) + shift[:, None])
    assert (layer(x, c._replace(vector=vector)) - expected).abs().max() < 1e-12


def test_tables_of_adaln_single_start_as_in_its_release():
    network = fresh_dit("adaln-single", hidden_size=256)
    tables = [p for name, p in network.named_parameters() if name.endswith("adaLN_table")]
    assert [p.shape for p in tables] == [(6, 256), (6, 256), (2, 256)]
    # 3,584 numbers: their deviation has an error of 1.2%
    std = torch.cat([p.flatten() for p in tables]).std().item()
    assert std == pytest.approx(1 / 16, rel=0.07)
    assert network.context.modulation[1].weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_adaln_is_adaln_zero_with_gates_of_one():
    gated, plain = perturbed_dit("adaln-zero").blocks[0], perturbed_dit("adaln").blocks[0]
    weights = {name: p for name, p in plain.state_dict().items() if "adaLN" not in name}
    gated.load_state_dict(weights, strict=False)
    theirs, ours = plain.adaLN_modulation[1], gated.adaLN_modulation[1]
    for parameter, gate in (("weight", 0.0), ("bias", 1.0)):
        shift1, scale1, shift2, scale2 = getattr(theirs, parameter).data.chunk(4)
        gates = torch.full_like(shift1, gate)
        getattr(ours, parameter).data = torch.cat([shift1, scale1, gates, shift2, scale2, gates])
    x, c = block_inputs()
    assert (gated(x, c) - plain(x, c)).abs().max() < 1e-6


def test_without_its_text_attention_a_text_network_is_adaln_zero_of_time():
    """The rest of a text block is the release's (2310.00426, section 2.2)."""
    text, plain = perturbed_dit("text"), perturbed_dit("adaln-zero", num_classes=0)
    plain.load_state_dict(
        {k: p for k, p in text.state_dict().items() if not k.startswith("y_embedder")}, strict=False
    )
    with torch.no_grad():
        plain.y_embedder.embedding_table.weight.zero_()
        for block in text.blocks:
            block.text_attn.proj.weight.zero_()
            block.text_attn.proj.bias.zero_()
    x, t, captions = inputs("text")
    assert torch.equal(text(x, t, captions), plain(x, t, torch.zeros(3, dtype=torch.long)))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_parameter_but_the_positions_gets_a_gradient(conditioning):
    network = perturbed_dit(conditioning, learn_sigma=True)
    network(*inputs(conditioning)).square().sum().backward()
    assert without_gradient(network) == {"pos_embed"}


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_parameter_has_its_initial_weight(conditioning):
    network = fresh_dit(conditioning, hidden_size=64)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.fill_(7.0)
    init_weights(network)
    weights = dict(network.named_parameters())
    assert not any((p == 7).any() for p in weights.values())

    norms = {name for name in weights if "norm" in name and name.endswith("weight")}
    assert {name for name, p in weights.items() if torch.equal(p, torch.ones_like(p))} == norms
    modulation = "adaLN_modulation.1.weight"
    zero = (
        "bias",
        modulation,
        "final_layer.linear.weight",
        "text_attn.proj.weight",
        "gate1",
        "gate2",
    )
    named_zero = {name for name in weights if name.endswith(zero)}
    assert {name for name, p in weights.items() if not p.any()} == named_zero
    if conditioning == "cross-attention":
        bound = math.sqrt(6 / (64 + 128))
        assert 0.98 * bound < network.blocks[0].cross_attn.kv.weight.abs().max() <= bound


@pytest.mark.parametrize("conditioning", OF_CLASSES)
def test_a_step_on_one_class_trains_that_class_alone(conditioning):
    """It changes one row of the label table, and that row the outputs for that class only."""
    network, (x, t, _) = perturbed_dit(conditioning), inputs(conditioning)
    table = network.y_embedder.embedding_table.weight
    before = table.data.clone()
    functional.mse_loss(network(x, t, torch.full((3,), 2)), x).backward()
    after = before - 0.01 * table.grad

    def of_every_class(rows):
        table.data = rows
        return network(x[:1].expand(6, -1, -1, -1), t[:1].expand(6), torch.arange(6))

    only_2 = [False, False, True, False, False, False]
    assert (after != before).any(dim=1).tolist() == only_2
    moved = (of_every_class(after) - of_every_class(before)).abs().amax(dim=(1, 2, 3))
    assert (moved > 1e-6).tolist() == only_2
