import pytest
import torch
from helpers.networks import TEXT_WIDTH, fresh_dit

from dit.models.attention_maps import attention_maps, text_maps

X = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
T, Y = torch.tensor([1.0, 700.0]), torch.tensor([0, 5])
SHAPE = dict(patch_size=2, hidden_size=48)


def with_strong_weights(network, std):
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network():
    return with_strong_weights(fresh_dit(**SHAPE, input_size=(4, 6), depth=3, num_heads=4), 0.15)


@pytest.mark.portable
def test_maps_are_softmax_of_queries_and_keys(network):
    """Softmax(q k^T / sqrt(d)) (1706.03762, equation 1) from the outputs of the block's own qkv."""
    qkv = {}
    hooks = []
    for i, block in enumerate(network.blocks):
        keep = lambda m, a, out, i=i: qkv.__setitem__(i, out)  # noqa: E731
        hooks.append(block.attn.qkv.register_forward_hook(keep))
    with attention_maps(network, [0, 2]) as maps:
        network(X, T, Y)
    for hook in hooks:
        hook.remove()

    assert sorted(maps) == [0, 2]
    for layer, map_ in maps.items():
        q, k, _ = qkv[layer].chunk(3, dim=-1)  # [2, 6, 48], the heads one after the other
        heads = [slice(12 * h, 12 * h + 12) for h in range(4)]
        weights = [(q[..., h] @ k[..., h].mT / 12**0.5).softmax(-1) for h in heads]
        assert (map_ - torch.stack(weights).mean(0)).abs().max() < 1e-5
        assert map_.std() > 0.01, "the same everywhere"


@pytest.mark.portable
def test_recording_leaves_the_network_unchanged(network):
    before = network(X, T, Y)
    fused = [block.attn.fused_attn for block in network.blocks]
    with attention_maps(network, [1]) as maps:
        during = network(X, T, Y)
    recorded = maps[1].clone()
    assert (during - before).abs().max() < 1e-5 * before.abs().max()
    assert torch.equal(network(X, T, Y), before)
    assert [block.attn.fused_attn for block in network.blocks] == fused
    network(X + 1, T, Y)
    assert torch.equal(maps[1], recorded), "still recording"


def test_recording_ends_after_an_error(network):
    attention = network.blocks[0].attn
    fused = attention.fused_attn
    with pytest.raises(RuntimeError), attention_maps(network, [0]):
        network(X[:, :2], T, Y)
    assert attention.fused_attn == fused
    assert not attention.attn_drop._forward_hooks


@pytest.mark.portable
def test_maps_of_text_are_the_weights_of_its_attention(monkeypatch):
    """With one head the mean over heads is that head: the map times the values is the output."""
    network = with_strong_weights(fresh_dit("text", **SHAPE, input_size=4, num_heads=1), 0.2)
    network.double()  # sums in any order agree to 1e-12
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # maps are float32 otherwise
    attention, outputs = network.blocks[1].text_attn, {}
    text = torch.randn(2, 9, TEXT_WIDTH).double()
    text[1, 5:] = 0  # padding
    attention.kv.register_forward_hook(lambda m, a, out: outputs.__setitem__("kv", out))
    attention.register_forward_hook(lambda m, a, out: outputs.__setitem__("out", out))
    with text_maps(network, [1]) as maps:
        network(X[..., :4].double(), T, text)
    assert maps[1].shape == (2, 4, 9)
    assert not maps[1][1, :, 5:].any()
    assert (maps[1].sum(-1) - 1).abs().max() < 1e-12
    values = outputs["kv"].chunk(2, dim=-1)[1]
    assert (attention.proj(maps[1] @ values) - outputs["out"]).abs().max() < 1e-12
