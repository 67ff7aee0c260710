"""DiT: the printed formulas, the release's layout, initial weights."""

import math

import pytest
import torch
from helpers.networks import TRUNK, fresh_dit, inputs, perturbed_dit

from dit.models.dit import DiTBlock
from dit.models.embeddings import Condition, position_embedding, sinusoids


def test_a_block_is_its_printed_formula():
    """Section 3.2, figure 3: alpha is the gate, gamma the scale, beta the shift; release order."""
    torch.manual_seed(0)
    block = DiTBlock(16, 2).double()
    x, c = torch.randn(2, 4, 16).double(), torch.randn(2, 16).double()
    modulation = block.adaLN_modulation[1](torch.nn.functional.silu(c)).view(2, 6, 1, 16)
    beta1, gamma1, alpha1, beta2, gamma2, alpha2 = modulation.unbind(1)

    def norm(h):
        variance = h.var(-1, correction=0, keepdim=True)
        return (h - h.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()

    def attention(h):
        q, k, v = block.attn.qkv(h).view(2, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
        h = (q @ k.mT / math.sqrt(8)).softmax(-1) @ v
        return block.attn.proj(h.transpose(1, 2).reshape(2, 4, 16))

    h = x + alpha1 * attention(norm(x) * (1 + gamma1) + beta1)
    hidden = block.mlp.fc1(norm(h) * (1 + gamma2) + beta2)
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    expected = h + alpha2 * block.mlp.fc2(gelu)
    assert (expected - block(x, Condition(c))).abs().max() < 1e-12


def test_null_class_and_range_of_class_ids():
    network = perturbed_dit()
    x, t, _ = inputs()
    outs = [network(x, t, torch.full((3,), y)) for y in range(6)]  # 5 classes, then the null class
    assert all(not torch.allclose(outs[5], out) for out in outs[:5])
    with pytest.raises(IndexError):
        network(x, t, torch.full((3,), 6))


def test_unconditional_networks_have_the_null_class_alone():
    network = perturbed_dit(num_classes=0)
    x, t, _ = inputs()
    assert network.y_embedder.embedding_table.weight.shape == (1, 16)
    assert network(x, t, torch.zeros(3, dtype=torch.long)).shape == x.shape


def test_training_mode_changes_nothing():
    network = perturbed_dit()
    assert torch.equal(network.train()(*inputs()), network.eval()(*inputs()))


def test_patches_return_to_their_positions():
    """With gates at zero a token depends on its own patch alone."""
    network = fresh_dit(input_size=16)
    torch.nn.init.normal_(network.final_layer.linear.weight)
    x, t, y = inputs(n=1, size=(16, 16))
    changed = x.clone()
    changed[:, :, 4:8, 8:12] += 1
    where = (network(changed, t, y) - network(x, t, y)).abs().amax(dim=(0, 1)) > 0
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 8:12] = True
    assert torch.equal(where, expected)


def test_pixels_of_a_patch_are_in_the_release_order():
    """Output p * 4 * C + q * C + c of a token is its pixel (p, q) of channel c."""
    network = fresh_dit()
    network.final_layer.linear.bias.data = torch.arange(4 * 4 * 3).float()
    out = network(*inputs())
    assert torch.equal(out[0, :, 4:, :4], torch.arange(48.0).view(4, 4, 3).permute(2, 0, 1))


def release_shapes(out_channels):
    """State dict of the release for `TRUNK`: 2 blocks, width 16, 4 tokens of 4 x 4 x 3."""
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
    of_block = {
        "attn.qkv": (48, 16),
        "attn.proj": (16, 16),
        "mlp.fc1": (64, 16),
        "mlp.fc2": (16, 64),
        "adaLN_modulation.1": (96, 16),
    }
    for index in range(2):
        for name, shape in of_block.items():
            shapes[f"blocks.{index}.{name}.weight"] = shape
            shapes[f"blocks.{index}.{name}.bias"] = shape[:1]
    return shapes


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_state_dict_is_that_of_the_release(learn_sigma):
    tensors = fresh_dit(learn_sigma=learn_sigma).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == release_shapes(6 if learn_sigma else 3)


def test_positions_are_fixed_and_those_of_the_release():
    assert not fresh_dit().pos_embed.requires_grad
    table = position_embedding(16, (3, 3)).double().view(3, 3, 16)
    omega = torch.tensor([10000 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            waves = [f(axis * omega) for axis in (column, row) for f in (torch.sin, torch.cos)]
            assert (table[row, column] - torch.cat(waves)).abs().max() < 1e-7


def test_times_are_embedded_as_in_the_release():
    t = torch.tensor([0.0, 0.5, 999.0], dtype=torch.float64)
    omega = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    angles = t[:, None] * omega
    expected = torch.cat([angles.cos(), angles.sin()], dim=1)
    assert (sinusoids(t.float(), 256) - expected).abs().max() < 1e-4  # float32 keeps 999 to 3e-5
    assert (sinusoids(t, 256) - expected).abs().max() < 1e-7


def test_initial_weights():
    """2212.09748 and its release: embeddings normal(0.02), linear layers xavier-uniform."""
    network = fresh_dit(hidden_size=128, num_classes=200)
    mlp = network.t_embedder.mlp
    for embedding in (network.y_embedder.embedding_table, mlp[0], mlp[2]):
        assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert embedding.weight.abs().max() > 0.06  # normal, not uniform

    fans = {"x_embedder.proj": (128, 3 * 4 * 4)}
    for index in range(TRUNK["depth"]):
        block = f"blocks.{index}."
        fans |= {block + "attn.qkv": (384, 128), block + "attn.proj": (128, 128)}
        fans |= {block + "mlp.fc1": (512, 128), block + "mlp.fc2": (128, 512)}
    for name, both in fans.items():
        bound = math.sqrt(6 / sum(both))
        weight = network.get_submodule(name).weight
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
