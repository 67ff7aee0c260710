"""Ways to hear of time and class (2212.09748, section 3.2): their cost, what they depend on, what a fresh one says."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from dit.models.conditioning import CONDITIONINGS, CrossAttention
from dit.models.dit import Condition, DiT
from dit.models.registry import create_model, multiply_adds, parameters

IMAGENET = dict(input_size=32, in_channels=4, num_classes=1000, learn_sigma=True)
SMALL = dict(
    input_size=8, patch_size=4, in_channels=3, hidden_size=16, depth=2, num_heads=2, num_classes=5
)
OF_CLASSES = ("adaln-zero", "adaln", "cross-attention", "in-context")

# 2212.09748, figure 5 and table 4: multiply-adds (G) and parameters (M) of XL/2
PAPER = {
    "in-context": (119.37, 449),
    "cross-attention": (137.62, 598),
    "adaln": (118.56, 600),
    "adaln-zero": (118.64, 675),
}


def fresh(conditioning, **changes):
    torch.manual_seed(0)
    width = 12 if conditioning == "text" else None
    return DiT(**{**SMALL, "conditioning": conditioning, "text_width": width, **changes})


def perturbed(conditioning, **changes):
    """A network in which no weight is zero."""
    network = fresh(conditioning, **changes)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def inputs(conditioning, n=3, size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(n, 3, *size, generator=generator), torch.rand(n, generator=generator) * 1000
    y = torch.randn(n, 7, 12, generator=generator) if conditioning == "text" else torch.arange(n)
    return x, t, y


@pytest.mark.parametrize("conditioning", PAPER)
def test_cost_is_that_of_the_paper(conditioning):
    gflops, millions = PAPER[conditioning]
    with torch.device("meta"):
        network = create_model("DiT-XL/2", conditioning=conditioning, **IMAGENET)
    assert parameters(network) / 1e6 == pytest.approx(millions, abs=0.8)
    assert multiply_adds("DiT-XL/2", conditioning=conditioning, **IMAGENET) / 1e9 == pytest.approx(
        gflops, rel=2.5e-4
    )


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_shapes_at_rectangles_and_after_resizing(conditioning, learn_sigma):
    network = perturbed(conditioning, input_size=(8, 16), learn_sigma=learn_sigma)
    out = network(*inputs(conditioning, size=(8, 16)))
    assert out.shape == (3, 6 if learn_sigma else 3, 8, 16)
    network.resize((12, 4))
    assert network(*inputs(conditioning, size=(12, 4))).shape[2:] == (12, 4)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_fresh_network_says_exactly_zero(conditioning):
    assert not fresh(conditioning)(*inputs(conditioning)).any()


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_each_image_depends_on_its_own_time_and_class(conditioning):
    network, (x, t, y) = perturbed(conditioning), inputs(conditioning)
    said = network(x, t, y)
    later, other = t.clone(), y.clone()
    later[1], other[2] = later[1] + 100, y[0]
    for changed, who in ((network(x, later, y), 1), (network(x, t, other), 2)):
        moved = (changed - said).abs().amax(dim=(1, 2, 3))
        assert moved[who] > 1e-3
        assert moved[[i for i in range(3) if i != who]].max() < 1e-5


@pytest.mark.parametrize("conditioning", sorted({*CONDITIONINGS} - {"in-context"}))
@pytest.mark.parametrize("deaf", [0, 1])
def test_every_block_hears_of_time_and_class(conditioning, deaf):
    """Of two blocks the other passes both on, when all else that hears of them is cut."""
    network, (x, t, y) = perturbed(conditioning), inputs(conditioning)
    hears = ("adaLN_modulation.1.weight", "cross_attn.proj.weight", "text_attn.proj.weight")
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith(hears) and name.startswith((f"blocks.{deaf}.", "final_layer.")):
                p.zero_()
    said = network(x, t, y)
    assert (network(x, t + 100, y) - said).abs().max() > 1e-4
    assert (network(x, t, y.flip(0)) - said).abs().max() > 1e-4


class Alone(torch.nn.Module):
    """Attention among the image's tokens only."""

    def __init__(self, attention, count):
        super().__init__()
        self.attention, self.count = attention, count

    def forward(self, x):
        return torch.cat(
            [self.attention(x[:, : self.count]), torch.zeros_like(x[:, self.count :])], dim=1
        )


def test_in_context_hears_by_self_attention_alone():
    network, (x, t, y) = perturbed("in-context"), inputs("in-context")
    for block in network.blocks:
        block.attn = Alone(block.attn, 4)
    assert torch.equal(network(x, t, y), network(x, t + 100, y.flip(0)))


def test_cross_attention_is_its_printed_formula():
    """Softmax(q k^T / sqrt(d)) v (1706.03762, equation 1) for each head; fused and plain alike."""
    torch.manual_seed(0)
    attention = CrossAttention(16, 2).double()
    x, tokens = torch.randn(2, 4, 16).double(), torch.randn(2, 3, 16).double()
    q, (k, v) = attention.q(x), attention.kv(tokens).chunk(2, dim=-1)
    heads = [
        (q[..., h] @ k[..., h].mT / math.sqrt(8)).softmax(-1) @ v[..., h]
        for h in (slice(0, 8), slice(8, 16))
    ]
    for attention.fused_attn in (True, False):
        assert (attention(x, tokens) - attention.proj(torch.cat(heads, dim=-1))).abs().max() < 1e-12


@pytest.mark.parametrize("conditioning", ["cross-attention", "text"])
def test_the_order_of_tokens_of_a_condition_does_not_matter(conditioning):
    block = perturbed(conditioning).double().blocks[0]
    x, vector, tokens = (
        torch.randn(2, 4, 16).double(),
        torch.randn(2, 16).double(),
        torch.randn(2, 5, 16).double(),
    )
    said = block(x, Condition(vector, tokens))
    assert (block(x, Condition(vector, tokens.flip(1))) - said).abs().max() < 1e-12
    assert (block(x, Condition(vector, tokens[:, :4])) - said).abs().max() > 1e-4


@pytest.mark.portable
@pytest.mark.parametrize("fused", [True, False])
def test_padded_text_is_as_the_text_alone(fused):
    """Each caption's own length: zeros behind it change nothing; without any mask they do."""
    network, (x, t, y) = perturbed("text"), inputs("text")
    for block in network.blocks:
        block.text_attn.fused_attn = fused
    y[1, 4:], y[2] = (
        0,
        0,
    )  # a shorter caption, and one without a word, of which the first token is heard
    alone = torch.cat(
        [
            network(x[i : i + 1], t[i : i + 1], y[i : i + 1, :count])
            for i, count in enumerate((7, 4, 1))
        ]
    )
    padded = network(x, t, torch.cat([y, torch.zeros(3, 5, 12)], dim=1))
    assert padded.isfinite().all()
    assert (padded - alone).abs().max() < 1e-5
    block, h, c = network.blocks[0], torch.randn(3, 4, 16), network.condition(t, y)
    assert c.mask.sum(1).tolist() == [7, 4, 1]
    assert (block(h, c._replace(mask=None)) - block(h, c))[1].abs().max() > 1e-3
    whole = c._replace(mask=torch.ones_like(c.mask))
    assert (block(h, c._replace(mask=None)) - block(h, whole)).abs().max() < 1e-5


@pytest.mark.parametrize("conditioning", ["adaln-zero", "text"])
def test_a_fresh_block_with_gates_is_the_identity(conditioning):
    x, c = torch.randn(2, 4, 16), Condition(torch.randn(2, 16), torch.randn(2, 3, 16))
    assert all(torch.equal(block(x, c), x) for block in fresh(conditioning).blocks)
    assert not any(torch.allclose(block(x, c), x) for block in perturbed(conditioning).blocks)


def test_fresh_adaln_and_plain_blocks_are_the_same():
    """Zero modulation is shift 0 and scale 0, and a fresh norm of its own has scale 1 and shift 0."""
    adaptive, plain = fresh("adaln").blocks[0], fresh("in-context").blocks[0]
    adaptive.load_state_dict(plain.state_dict(), strict=False)
    x, c = torch.randn(2, 4, 16), Condition(torch.randn(2, 16), torch.randn(2, 2, 16))
    assert (adaptive(x, c) - plain(x, c)).abs().max() < 1e-6
    assert not torch.allclose(adaptive(x, c), x)


def test_gates_of_one_make_adaln_of_adaln_zero():
    zero, plain = perturbed("adaln-zero").blocks[0], perturbed("adaln").blocks[0]
    weights = {name: p for name, p in plain.state_dict().items() if "adaLN" not in name}
    zero.load_state_dict(weights, strict=False)
    old, new = plain.adaLN_modulation[1], zero.adaLN_modulation[1]
    for theirs, ours, gate in ((new.weight, old.weight, 0.0), (new.bias, old.bias, 1.0)):
        shift1, scale1, shift2, scale2 = ours.data.chunk(4)
        ones = torch.full_like(shift1, gate)
        theirs.data = torch.cat([shift1, scale1, ones, shift2, scale2, ones])
    x, c = torch.randn(2, 4, 16), Condition(torch.randn(2, 16), torch.randn(2, 2, 16))
    assert (zero(x, c) - plain(x, c)).abs().max() < 1e-6


def test_text_without_its_projection_is_adaln_zero_of_time():
    """The rest of a text block is the release's, so that text alone is new (2310.00426, section 2.2)."""
    text, plain = perturbed("text"), perturbed("adaln-zero", num_classes=0)
    weights = {
        name: p
        for name, p in text.state_dict().items()
        if "text_attn" not in name and "y_embedder" not in name
    }
    plain.load_state_dict(weights, strict=False)
    with torch.no_grad():
        plain.y_embedder.embedding_table.weight.zero_()
        for block in text.blocks:
            block.text_attn.proj.weight.zero_()
            block.text_attn.proj.bias.zero_()
    x, t, words = inputs("text")
    assert torch.equal(text(x, t, words), plain(x, t, torch.zeros(3, dtype=torch.long)))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_gradient_reaches_everything_but_the_positions(conditioning):
    network = perturbed(conditioning, learn_sigma=True)
    network(*inputs(conditioning)).square().sum().backward()
    assert {
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    } == {"pos_embed"}


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_parameter_has_its_initial_weight(conditioning):
    network = fresh(conditioning, hidden_size=64)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.fill_(7.0)
    network.init_weights()
    ones = {name for name, p in network.named_parameters() if torch.equal(p, torch.ones_like(p))}
    zeros = {name for name, p in network.named_parameters() if not p.any()}
    assert not any((p == 7).any() for p in network.parameters())
    assert ones == {
        name for name, _ in network.named_parameters() if "norm" in name and name.endswith("weight")
    }
    ends = (
        "bias",
        "adaLN_modulation.1.weight",
        "final_layer.linear.weight",
        "text_attn.proj.weight",
    )
    assert zeros == {name for name, _ in network.named_parameters() if name.endswith(ends)}
    if conditioning == "cross-attention":
        bound = math.sqrt(6 / (64 + 128))
        assert 0.98 * bound < network.blocks[0].cross_attn.kv.weight.abs().max() <= bound


@pytest.mark.parametrize("conditioning", OF_CLASSES)
def test_what_is_learnt_of_a_class_stays_apart(conditioning):
    """One step on one class moves its row of the label table alone, and that row alone what is said of the class."""
    network, (x, t, _) = perturbed(conditioning), inputs(conditioning)
    same = x[:1].expand(6, -1, -1, -1), t[:1].expand(6), torch.arange(6)
    before, said = copy.deepcopy(network.y_embedder.embedding_table.weight.data), network(*same)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    functional.mse_loss(network(x, t, torch.full((3,), 2)), x).backward()
    optimizer.step()
    table = network.y_embedder.embedding_table.weight.data.clone()
    only_2 = [False, False, True, False, False, False]
    assert ((table - before).abs().amax(dim=1) > 0).tolist() == only_2
    network = perturbed(conditioning)
    network.y_embedder.embedding_table.weight.data = table
    assert ((network(*same) - said).abs().amax(dim=(1, 2, 3)) > 1e-6).tolist() == only_2
