"""The network: sizes, names, initial weights and what a fresh one computes."""

import math

import pytest
import torch

from dit.errors import UserError
from dit.models.dit import Condition, DiT, DiTBlock
from dit.models.embeddings import position_embedding, sinusoids
from dit.models.registry import check_name, create_model, multiply_adds, parameters, structure

IMAGENET = dict(input_size=32, in_channels=4, num_classes=1000, learn_sigma=True)
SMALL = dict(
    input_size=8, patch_size=4, in_channels=3, hidden_size=16, depth=2, num_heads=2, num_classes=5
)

# 2212.09748: table 4 for the multiply-adds (at patch 8, 4, 2), appendix for the parameters (at patch 2).
PAPER = {
    "S": (33, (0.36, 1.41, 6.06)),
    "B": (130, (1.42, 5.56, 23.01)),
    "L": (458, (5.01, 19.70, 80.71)),
    "XL": (675, (7.39, 29.05, 118.64)),
}


def small(**changes):
    torch.manual_seed(0)
    return DiT(**{**SMALL, **changes})


def perturbed(**changes):
    """A network in which no weight is zero."""
    network = small(**changes)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def inputs(n=3, size=8, channels=3, classes=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, size, size, generator=generator)
    return x, torch.rand(n, generator=generator) * 1000, torch.arange(n) % classes


@pytest.mark.parametrize("size", PAPER)
def test_parameters_are_those_of_the_paper(size):
    with torch.device("meta"):
        network = create_model(f"DiT-{size}/2", **IMAGENET)
    # 130.5 M is printed as 130, 32.96 as 33
    assert parameters(network) / 1e6 == pytest.approx(PAPER[size][0], abs=0.52)


def test_parameters_of_the_published_checkpoint():
    with torch.device("meta"):
        assert parameters(create_model("DiT-XL/2", **IMAGENET)) == 675_129_632


@pytest.mark.parametrize("size", PAPER)
def test_multiply_adds_are_those_of_the_paper(size):
    counted = [multiply_adds(f"DiT-{size}/{patch}", **IMAGENET) / 1e9 for patch in (8, 4, 2)]
    # printed with two decimals, not always rounded to the nearest; activations add some 0.02 %
    assert counted == [pytest.approx(printed, rel=2.5e-4, abs=0.0065) for printed in PAPER[size][1]]


def test_multiply_adds_at_512_pixels():
    assert multiply_adds("DiT-XL/2", **{**IMAGENET, "input_size": 64}) / 1e9 == pytest.approx(
        524.60, rel=2.5e-4
    )


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_a_fresh_network_says_exactly_zero(learn_sigma):
    x, t, y = inputs()
    out = small(learn_sigma=learn_sigma)(x, t, y)
    assert out.shape == (3, 6 if learn_sigma else 3, 8, 8)
    assert not out.any()
    assert perturbed(learn_sigma=learn_sigma)(x, t, y).abs().min() > 0


def test_a_fresh_block_is_the_identity_whatever_the_condition():
    x, c = torch.randn(2, 4, 16), Condition(torch.randn(2, 16), torch.randn(2, 2, 16))
    assert all(torch.equal(block(x, c), x) for block in small().blocks)
    assert not any(torch.allclose(block(x, c), x) for block in perturbed().blocks)


def test_a_block_is_its_printed_formula():
    """Section 3.2 and figure 3: alpha is the gate, gamma the scale, beta the shift, in the release's order."""
    torch.manual_seed(0)
    block = DiTBlock(16, 2).double()
    x, c = torch.randn(2, 4, 16).double(), torch.randn(2, 16).double()
    beta1, gamma1, alpha1, beta2, gamma2, alpha2 = (
        block.adaLN_modulation[1](torch.nn.functional.silu(c)).view(2, 6, 1, 16).unbind(1)
    )

    def norm(h):
        return (h - h.mean(-1, keepdim=True)) / (
            h.var(-1, correction=0, keepdim=True) + 1e-6
        ).sqrt()

    def attention(h):
        q, k, v = block.attn.qkv(h).view(2, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
        h = (q @ k.mT / math.sqrt(8)).softmax(-1) @ v
        return block.attn.proj(h.transpose(1, 2).reshape(2, 4, 16))

    h = x + alpha1 * attention(norm(x) * (1 + gamma1) + beta1)
    hidden = block.mlp.fc1(norm(h) * (1 + gamma2) + beta2)
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    assert (
        h + alpha2 * block.mlp.fc2(gelu) - block(x, Condition(c, c[:, None]))
    ).abs().max() < 1e-12


def test_null_class_and_range_of_class_ids():
    network = perturbed()
    x, t, _ = inputs()
    outs = [network(x, t, torch.full((3,), y)) for y in range(6)]  # 5 classes, then the null class
    assert all(not torch.allclose(outs[5], out) for out in outs[:5])
    with pytest.raises(IndexError):
        network(x, t, torch.full((3,), 6))


def test_training_mode_changes_nothing():
    network = perturbed()
    assert torch.equal(network.train()(*inputs()), network.eval()(*inputs()))


@pytest.mark.portable
def test_images_of_a_batch_do_not_mix():
    network, (x, t, y) = perturbed(), inputs()
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert (network(x, t, y) - alone).abs().max() < 1e-5


@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 1, 8), (16, 100, 16), (3, 7, 4)])
def test_any_channels_classes_and_size(channels, classes, size):
    network = perturbed(in_channels=channels, num_classes=classes, input_size=size)
    x, t, y = inputs(2, size, channels, classes)
    assert network(x, t, y).shape == x.shape


def test_patches_are_put_back_where_they_came_from():
    """With gates at zero a token sees its own patch alone, so a change of one patch changes that patch."""
    network = small(input_size=16)
    torch.nn.init.normal_(network.final_layer.linear.weight)
    x, t, y = inputs(1, 16)
    changed = x.clone()
    changed[:, :, 4:8, 8:12] += 1
    where = (network(changed, t, y) - network(x, t, y)).abs().amax(dim=(0, 1)) > 0
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 8:12] = True
    assert torch.equal(where, expected)


def test_pixels_of_a_patch_are_in_the_release_order():
    """Rows, then columns, then channels: output p * 4 * C + q * C + c of a token is its pixel (p, q) of channel c."""
    network = small()
    network.final_layer.linear.bias.data = torch.arange(4 * 4 * 3).float()
    out = network(*inputs())
    assert torch.equal(out[0, :, 4:, :4], torch.arange(48.0).view(4, 4, 3).permute(2, 0, 1))


def test_worked_example_of_tokens():
    with torch.device("meta"):
        network = create_model("DiT-S/4", **IMAGENET)
        assert network.x_embedder(torch.empty(16, 4, 32, 32)).shape == (16, 64, 384)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DiT-S/3", "did you mean DiT-S/"),
        ("S/2", "did you mean DiT-S/2"),
        ("", "expected DiT-.* or UNet-.*; see"),
        ("DiT-Ti/3", "did you mean DiT-Ti/"),
        ("UNet-M", "did you mean UNet-[SB] or UNet-[SB]"),
        ("unet-s", "UNet-S"),
        ("Classifier-S", "expected DiT-.* or UNet-.*; see"),
        ("UNet-S/2", "did you mean UNet-S"),
    ],
)
def test_unknown_name(name, hint):
    for ask in (check_name, lambda name: create_model(name, **IMAGENET)):
        with pytest.raises(UserError, match=hint):
            ask(name)


@pytest.mark.parametrize("name", ["UNet-S", "Classifier-S/2"])
def test_only_a_dit_has_a_choice_of_conditioning(name):
    for ask in (check_name, lambda name, way: create_model(name, conditioning=way, **IMAGENET)):
        with pytest.raises(UserError, match=f"--conditioning in-context with --model {name}"):
            ask(name, "in-context")
    check_name("DiT-S/2", "in-context")


def test_networks_are_told_in_words():
    shape = dict(input_size=(8, 16), in_channels=4, num_classes=10)
    told = [
        structure(create_model(name, **shape)) for name in ("DiT-Ti/2", "UNet-S", "Classifier-Ti/4")
    ]
    assert told == [
        "Diffusion Transformer, adaln-zero conditioning, 32 tokens of 2 x 2 latents",
        "U-Net of 3 levels",
        "classifier, 8 tokens of 4 x 4 latents",
    ]


def test_unconditional_networks_know_the_null_label_alone():
    network = perturbed(num_classes=0)
    x, t, _ = inputs()
    assert network.y_embedder.embedding_table.weight.shape == (1, 16)
    assert network(x, t, torch.zeros(3, dtype=torch.long)).shape == x.shape
    with pytest.raises(IndexError):
        network(x, t, torch.ones(3, dtype=torch.long))


def test_patch_that_does_not_divide():
    with pytest.raises(UserError, match="30 x 30 with patch size 4"):
        create_model("DiT-S/4", **{**IMAGENET, "input_size": 30})


def release_shapes(out_channels):
    """State dict of the original release for `SMALL`, written out: 2 blocks, width 16, 4 tokens of 4 x 4 x 3."""
    shapes = {
        "pos_embed": (1, 4, 16),
        "x_embedder.proj.weight": (16, 3, 4, 4),
        "x_embedder.proj.bias": (16,),
        "t_embedder.mlp.0.weight": (16, 256),
        "t_embedder.mlp.0.bias": (16,),
        "t_embedder.mlp.2.weight": (16, 16),
        "t_embedder.mlp.2.bias": (16,),
        "y_embedder.embedding_table.weight": (6, 16),
        "final_layer.linear.weight": (16 * out_channels, 16),
        "final_layer.linear.bias": (16 * out_channels,),
        "final_layer.adaLN_modulation.1.weight": (32, 16),
        "final_layer.adaLN_modulation.1.bias": (32,),
    }
    for block in ("blocks.0.", "blocks.1."):
        shapes |= {
            block + "attn.qkv.weight": (48, 16),
            block + "attn.qkv.bias": (48,),
            block + "attn.proj.weight": (16, 16),
            block + "attn.proj.bias": (16,),
            block + "mlp.fc1.weight": (64, 16),
            block + "mlp.fc1.bias": (64,),
            block + "mlp.fc2.weight": (16, 64),
            block + "mlp.fc2.bias": (16,),
            block + "adaLN_modulation.1.weight": (96, 16),
            block + "adaLN_modulation.1.bias": (96,),
        }
    return shapes


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_state_dict_is_that_of_the_release(learn_sigma):
    found = {
        name: tuple(tensor.shape)
        for name, tensor in small(learn_sigma=learn_sigma).state_dict().items()
    }
    assert found == release_shapes(6 if learn_sigma else 3)


def test_positions_are_fixed_and_those_of_the_release():
    assert not small().pos_embed.requires_grad
    table = position_embedding(16, (3, 3)).double().view(3, 3, 16)
    omega = torch.tensor([10000 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            expected = torch.cat(
                [f(place * omega) for place in (column, row) for f in (torch.sin, torch.cos)]
            )
            assert (table[row, column] - expected).abs().max() < 1e-7


def test_times_are_embedded_as_in_the_release():
    t = torch.tensor([0.0, 0.5, 999.0])
    expected = torch.stack(
        [
            torch.tensor(
                [f(time * 10000 ** (-i / 128)) for f in (math.cos, math.sin) for i in range(128)],
                dtype=torch.float64,
            )
            for time in t.tolist()
        ]
    )
    assert (sinusoids(t, 256) - expected).abs().max() < 1e-4  # float32 keeps 999 to 3e-5
    assert (sinusoids(t.double(), 256) - expected).abs().max() < 1e-7


def test_initial_weights():
    """2212.09748 and its release: embeddings normal(0.02), the rest xavier-uniform, biases and modulations zero."""
    torch.manual_seed(0)
    network = DiT(**{**SMALL, "hidden_size": 128, "num_classes": 200})
    for embedding in (
        network.y_embedder.embedding_table,
        network.t_embedder.mlp[0],
        network.t_embedder.mlp[2],
    ):
        assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert embedding.weight.abs().max() > 0.06  # normal, not uniform
    uniform = {"x_embedder.proj": (128, 3 * 4 * 4)}
    for block in ("blocks.0.", "blocks.1."):
        uniform |= {block + "attn.qkv": (384, 128), block + "attn.proj": (128, 128)}
        uniform |= {block + "mlp.fc1": (512, 128), block + "mlp.fc2": (128, 512)}
    zero = {name for name, p in network.named_parameters() if not p.any()}
    for name, fans in uniform.items():
        bound = math.sqrt(6 / sum(fans))
        weight = network.get_submodule(name).weight
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    modulations = {
        f"{m}.adaLN_modulation.1.weight" for m in ("blocks.0", "blocks.1", "final_layer")
    }
    biases = {name for name, _ in network.named_parameters() if name.endswith("bias")}
    assert zero == modulations | biases | {"final_layer.linear.weight"}


def test_gradient_reaches_everything_but_the_positions():
    network = perturbed(learn_sigma=True)
    network(*inputs()).square().sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"pos_embed"}
