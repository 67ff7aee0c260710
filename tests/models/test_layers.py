"""The modern layers of a block: the papers' formulas, and the relations that they promise."""

import dataclasses
import itertools

import pytest
import torch
from helpers.networks import changed_images, inputs, perturb, without_gradient

from dit.errors import UserError
from dit.models import layers
from dit.models.attention_maps import attention_maps
from dit.models.conditioning import CONDITIONINGS
from dit.models.embeddings import axial_rotation
from dit.models.feature_cache import run_all_blocks
from dit.models.layers import (
    MODERN,
    PLAIN,
    SWITCHES,
    BlockLayers,
    RMSNorm,
    SelfAttention,
    parse_layers,
    refuse_idle_switches,
    rotate,
)
from dit.models.registry import count_parameters, create_model

SHAPE = dict(input_size=8, in_channels=3, num_classes=5)
EACH = [f"plain+{switch}" for switch in SWITCHES]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of width 128, two blocks and four heads of 32."""
    from dit.models.sizes import SIZES

    monkeypatch.setitem(SIZES, "Ti", dict(depth=2, hidden_size=128, num_heads=4))


def network_of(block, conditioning="adaln-zero", **changes):
    torch.manual_seed(0)
    return create_model("DiT-Ti/4", block=block, conditioning=conditioning, **(SHAPE | changes))


# -- the spec --------------------------------------------------------------------------------------


def test_a_spec_is_a_base_and_switches():
    assert parse_layers("plain") == PLAIN
    assert parse_layers("modern") == MODERN
    assert parse_layers("plain+rope+nobias") == BlockLayers(rope=True, nobias=True)
    assert parse_layers("modern-qknorm+nobias") == dataclasses.replace(
        MODERN, qknorm=False, nobias=True
    )


def test_layers_have_one_text_whatever_the_order_of_their_switches():
    texts = set()
    for values in itertools.product([False, True], repeat=len(SWITCHES)):
        layers = BlockLayers(*values)
        assert parse_layers(layers.spec) == layers
        texts.add(layers.spec)
    assert len(texts) == 2 ** len(SWITCHES)
    for block, text in [
        ("plain+qknorm+rope", "plain+rope+qknorm"),
        ("plain+rope-rope", "plain"),
        ("plain+heads64+swiglu+rope+rmsnorm", "modern-qknorm"),
        ("modern+nobias-qknorm", "modern-qknorm+nobias"),
    ]:
        assert parse_layers(block).spec == text


@pytest.mark.parametrize(
    "block", ["", "rope", "plain+roap", "modern+", "plain+-rope", "plain rope", "-rope"]
)
def test_an_unknown_spec_is_refused(block):
    with pytest.raises(UserError, match="--block"):
        parse_layers(block)


def test_switches_are_separated():
    with pytest.raises(UserError, match=r"as in --block plain\+qknorm\+rope"):
        parse_layers("plain+qknorm,rope")


@pytest.mark.parametrize(
    ("block", "do"),
    [
        ("plain-rope", "plain has no rope: drop -rope"),
        ("plain+rope+rope", "plain+rope has rope: drop +rope"),
        ("modern-heads64-heads64", "modern-heads64 has no heads64: drop -heads64"),
        ("modern+nobias+qknorm", "modern+nobias has qknorm: drop +qknorm"),
    ],
)
def test_switches_that_change_nothing_are_refused(block, do):
    with pytest.raises(UserError) as error:
        refuse_idle_switches(block)
    assert error.value.do == do
    # a run of an earlier version may have them
    parse_layers(block)


def test_switches_that_change_something_are_not_refused():
    for block in ("plain", "modern", "plain+rope-rope", "modern-qknorm+nobias", *EACH):
        refuse_idle_switches(block)


# -- norm, MLP, heads ------------------------------------------------------------------------------


@pytest.mark.portable
def test_rms_norm_is_its_formula():
    norm = perturb(RMSNorm(6).double())
    x = torch.randn(3, 6, dtype=torch.float64)
    rms = (x**2).sum(-1, keepdim=True).div(6).add(1e-6).sqrt()
    torch.testing.assert_close(norm(x), x / rms * norm.weight, rtol=1e-12, atol=0)


def test_rms_norm_computes_in_float32():
    """In bfloat16 alone it would be 0.9961."""
    x = torch.full((1, 1000), 300.0, dtype=torch.bfloat16)
    out = RMSNorm(1000).bfloat16()(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, torch.ones_like(out))


def test_rms_norm_takes_the_eps_that_it_is_given():
    """As a block's second norm, of weights from elsewhere."""
    norm = network_of("modern", mlp_norm_eps=3.0).blocks[0].norm2
    x = torch.ones(2, 128)
    torch.testing.assert_close(norm(x), torch.full_like(x, 0.5))


@pytest.mark.portable
def test_swiglu_is_its_formula_at_equal_parameters():
    mlp = MODERN.mlp(384).double()
    x = torch.randn(2, 384, dtype=torch.float64)
    gate, value = (mlp.fc1.weight @ x.T + mlp.fc1.bias[:, None]).chunk(2)
    expected = (mlp.fc2.weight @ (gate * gate.sigmoid() * value) + mlp.fc2.bias[:, None]).T
    torch.testing.assert_close(mlp(x), expected, rtol=1e-9, atol=1e-12)
    assert len(value) == 1024  # LightningDiT's width for 384
    ratio = count_parameters(mlp) / count_parameters(PLAIN.mlp(384))
    assert ratio == pytest.approx(1, abs=0.01)


def test_heads_of_64_for_all_sizes():
    xl = BlockLayers(heads64=True).num_heads(1152, 16)
    assert (xl, BlockLayers().num_heads(1152, 16)) == (18, 16)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_no_biases_in_attention_and_mlp(conditioning):
    width = 12 if conditioning == "text" else None

    def biases(block):
        network = network_of(block, conditioning, text_width=width)
        names = [name for name, _ in network.blocks[0].named_parameters()]
        return [name for name in names if name.endswith("bias") and "adaLN" not in name]

    assert biases("modern")
    assert not biases("modern+nobias")


# -- rotary positions ------------------------------------------------------------------------------


def scores(q, k, rotation):
    """Products of a query at each place with a key at each place: [T, T]."""
    places = rotation.shape[1]
    at_each = [rotate(x.expand(1, 1, places, -1), rotation)[0, 0] for x in (q, k)]
    return at_each[0] @ at_each[1].T


def test_products_of_rotated_vectors_depend_on_the_difference_of_places_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 64, dtype=torch.float64)
    grid = scores(q, k, axial_rotation(64, (5, 6)).double()).view(5, 6, 5, 6)
    assert torch.allclose(grid[1, 2, 0, 0], grid[4, 5, 3, 3], atol=1e-5)
    assert torch.allclose(grid[0, 0, 2, 1], grid[2, 4, 4, 5], atol=1e-5)
    # both axes count, and so does the direction
    assert abs(grid[1, 2, 0, 0] - grid[1, 2, 0, 1]) > 1e-2
    assert abs(grid[1, 2, 0, 0] - grid[1, 2, 1, 0]) > 1e-2
    assert abs(grid[1, 0, 0, 0] - grid[0, 0, 1, 0]) > 1e-2


def test_pairs_turn_by_their_frequency_rows_first():
    """A pair (1, 0) at row 3, column 5 becomes (cos, sin) of place times 10000^(-k / (d / 4))."""
    rotation = axial_rotation(16, (8, 8))
    pairs = torch.tensor([1.0, 0.0]).repeat(8).expand(1, 1, 64, 16)
    turned = rotate(pairs, rotation)[0, 0, 3 * 8 + 5].view(8, 2)
    for k in range(4):
        for half, place in ((0, 3), (4, 5)):
            angle = torch.tensor(place * 10000 ** (-k / 4))
            expected = torch.stack([angle.cos(), angle.sin()])
            torch.testing.assert_close(turned[half + k], expected, rtol=1e-5, atol=1e-6)


def test_rotation_keeps_lengths_and_leaves_tokens_without_a_place():
    x = torch.randn(2, 3, 6, 16)
    turned = rotate(x, axial_rotation(16, (2, 2)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 4:], x[:, :, 4:])
    assert not torch.equal(turned[:, :, 1:4], x[:, :, 1:4])


def test_another_size_stretches_the_trained_grid():
    """Twice the tokens along an axis lie at halves of the trained steps, edges together."""
    network = network_of("plain+rope", input_size=16)
    trained = network.rotation
    network.resize((32, 16))
    assert network.rotation.shape == (2, 8 * 4, 16)
    # centres of the middle two of eight tokens: 1.25 and 1.75 of the trained ones
    angle = torch.tensor(1.25)
    torch.testing.assert_close(
        network.rotation[:, 3 * 4, 0], torch.stack([angle.cos(), angle.sin()])
    )
    # along the other axis nothing changes
    assert torch.equal(network.rotation[:, :4, 8:], trained[:, :4, 8:])


def test_positions_of_plain_blocks_are_in_the_table_alone():
    assert network_of("plain").rotation is None
    assert "rotation" not in network_of("modern").state_dict()


# -- queries and keys ------------------------------------------------------------------------------


@pytest.mark.portable
@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_its_formula(fused):
    torch.manual_seed(0)
    attention = perturb(SelfAttention(32, 2, qkv_bias=True, qk_norm=True, norm_layer=RMSNorm))
    attention = attention.double()
    attention.fused_attn = fused
    x, rotation = torch.randn(2, 4, 32).double(), axial_rotation(16, (2, 2)).double()

    def heads(part):
        rows = slice(32 * part, 32 * part + 32)
        out = x @ attention.qkv.weight[rows].T + attention.qkv.bias[rows]
        return out.view(2, 4, 2, 16).transpose(1, 2)

    q = rotate(attention.q_norm(heads(0)), rotation)
    k = rotate(attention.k_norm(heads(1)), rotation)
    attended = (q @ k.mT / 4).softmax(-1) @ heads(2)
    expected = attention.proj(attended.transpose(1, 2).reshape(2, 4, 32))
    torch.testing.assert_close(attention(x, rotation), expected, rtol=1e-9, atol=1e-12)


def test_the_scale_of_queries_and_keys_does_not_matter_with_qk_norm():
    attention = SelfAttention(32, 2, qk_norm=True, norm_layer=RMSNorm)
    x = torch.randn(2, 4, 32)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:64] *= 1000
    torch.testing.assert_close(attention(x), before, rtol=1e-3, atol=1e-5)


# -- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", ["adaln-zero", "tokens", "cross-attention"])
@pytest.mark.parametrize("block", [*EACH, "modern"])
def test_each_variant_trains_all_its_weights(block, conditioning):
    network = network_of(block, conditioning)
    assert not network(*inputs()).any()  # fresh: zero, as every DiT
    perturb(network)(*inputs()).square().sum().backward()
    assert without_gradient(network) <= {"pos_embed"}


@pytest.mark.parametrize("block", [block for block in EACH if block != "plain+swiglu"])
def test_each_variant_differs_from_plain(block):
    """At the same weights, and with its own scales at one. SwiGLU's shapes differ: see above."""
    plain, network = perturb(network_of("plain")), network_of(block)
    known = {n: t for n, t in plain.state_dict().items() if n in network.state_dict()}
    network.load_state_dict(known, strict=False)
    assert (network(*inputs()) - plain(*inputs())).abs().max() > 1e-4


@pytest.mark.parametrize("conditioning", ["adaln-zero", "tokens"])
def test_modern_at_rectangles_and_other_sizes(conditioning):
    network = perturb(network_of("modern", conditioning, input_size=(8, 16)))
    assert network(*inputs(size=(8, 16))).shape == (3, 3, 8, 16)
    network.resize((12, 4))
    assert network(*inputs(size=(12, 4))).shape == (3, 3, 12, 4)


def test_maps_and_block_cache_see_modern_blocks():
    network = perturb(network_of("modern", "tokens"))
    with attention_maps(network, [1]) as maps:
        out = network(*inputs())
    assert maps[1].shape == (3, 4 + 12, 4 + 12)
    torch.testing.assert_close(maps[1].sum(-1), torch.ones(3, 16))
    torch.testing.assert_close(run_all_blocks(network, *inputs())[0], out)


# -- conditioning by tokens ------------------------------------------------------------------------


def test_time_and_class_reach_the_image_by_tokens_alone():
    network, (x, t, y) = perturb(network_of("modern", "tokens")), inputs()
    out = network(x, t, y)
    assert changed_images(network(x, t + torch.tensor([0, 100, 0]), y), out) == [False, True, False]
    assert changed_images(network(x, t, torch.tensor([0, 1, 3])), out) == [False, False, True]
    for block in network.blocks:
        block.gate1.data.zero_()  # no attention: images do not see the tokens
    assert torch.equal(network(x, t, y), network(x, t + 100, y.flip(0)))


def test_tokens_are_four_times_and_eight_classes_with_vectors_of_their_own():
    network, (x, t, y) = perturb(network_of("plain", "tokens")), inputs()
    tokens, _ = network.embed(x, t, y)
    time, label = network.t_embedder(t), network.y_embedder(y)
    for place in range(12):
        expected = network.context.tokens[place] + (time if place < 4 else label)
        torch.testing.assert_close(tokens[:, 4 + place], expected)


def test_tokens_have_a_third_fewer_parameters():
    sizes = [
        count_parameters(create_model("DiT-B/2", conditioning=kind, **(SHAPE | {"input_size": 32})))
        for kind in ("tokens", "adaln-zero")
    ]
    assert 0.62 < sizes[0] / sizes[1] < 0.70


# -- on eager CPUs: a complex product --------------------------------------------------------------


@pytest.mark.portable
def test_derivatives_of_the_rotation_are_finite_differences():
    """Also forward and second ones."""
    x = torch.randn(2, 1, 4, 8, dtype=torch.float64, requires_grad=True)
    rotation = axial_rotation(8, (2, 2)).double()
    torch.autograd.gradcheck(lambda x: rotate(x, rotation), (x,), check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda x: rotate(x, rotation).sin(), (x,))


@pytest.mark.portable
def test_outputs_and_gradients_on_eager_cpus_are_those_of_the_formula(monkeypatch):
    network = perturb(network_of("modern")).double()
    x, t, y = inputs()

    def compute():
        network.zero_grad()
        out = network(x.double(), t, y)
        out.square().sum().backward()
        return [out.detach(), *(p.grad for p in network.parameters() if p.requires_grad)]

    fast = compute()
    monkeypatch.setattr(layers, "is_eager_cpu", lambda x: False)
    for found, plain in zip(fast, compute(), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-8, atol=1e-8 * float(plain.abs().max()))


def test_bfloat16_is_turned_in_float32():
    """Outputs and gradients are rounded once."""
    torch.manual_seed(0)
    rotation = axial_rotation(64, (2, 2))
    x = torch.randn(8, 2, 6, 64).bfloat16().requires_grad_()
    g = torch.randn(x.shape).bfloat16()
    exact = x.detach().double().requires_grad_()

    out, expected = rotate(x, rotation), rotate(exact, rotation.double())
    found = [out, *torch.autograd.grad(out, x, g)]
    expected = [expected, *torch.autograd.grad(expected, exact, g.double())]
    # half of it is the bound of one rounding, to the nearest
    eps = torch.finfo(torch.bfloat16).eps
    # where the two products cancel, the rounding of float32 is left
    left = 4 * torch.finfo(torch.float32).eps * float(torch.stack([x, g]).abs().max())
    for rounded, truth in zip(found, expected, strict=True):
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.double(), truth, rtol=eps, atol=left)


def test_forward_derivatives_pass_through_modern_blocks():
    """torch.func.jvp beside a central difference, as MeanFlow takes it."""
    network = perturb(network_of("modern")).double()
    for block in network.blocks:
        block.attn.fused_attn = False  # the kernel has no forward derivatives
    x, t, y = inputs()
    x, direction = x.double(), torch.randn(x.shape, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda x: network(x, t, y), (x,), (direction,))
    h = 1e-5
    with torch.no_grad():
        difference = network(x + h * direction, t, y) - network(x - h * direction, t, y)
    torch.testing.assert_close(slope, difference / (2 * h), rtol=1e-5, atol=1e-6)


def test_the_norm_of_zeros_has_finite_derivatives():
    x = torch.zeros(2, 8, requires_grad=True)
    norm = RMSNorm(8)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()
    assert norm(x).eq(0).all()
