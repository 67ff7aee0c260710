import pytest
import torch

from dit.models.attention_maps import attention_maps, text_maps
from dit.models.dit import DiT


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = DiT(
        input_size=(4, 6),
        patch_size=2,
        in_channels=3,
        hidden_size=48,
        depth=3,
        num_heads=4,
        num_classes=5,
    )
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return network.eval().requires_grad_(False)


X = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
T, Y = torch.tensor([1.0, 700.0]), torch.tensor([0, 5])


@pytest.mark.portable
def test_maps_are_softmax_of_queries_and_keys(network):
    """Softmax(q k^T / sqrt(d)) (1706.03762, equation 1) from what the block's own qkv says."""
    said = {}
    hooks = [
        block.attn.qkv.register_forward_hook(lambda m, a, out, i=i: said.__setitem__(i, out))
        for i, block in enumerate(network.blocks)
    ]
    with attention_maps(network, [0, 2]) as maps:
        network(X, T, Y)
    for hook in hooks:
        hook.remove()
    assert sorted(maps) == [0, 2]
    for layer, found in maps.items():
        q, k, _ = said[layer].chunk(3, dim=-1)  # [2, 6, 48], the heads one after the other
        expected = torch.stack(
            [
                (q[..., head] @ k[..., head].mT / 12**0.5).softmax(-1)
                for head in (slice(12 * h, 12 * h + 12) for h in range(4))
            ]
        ).mean(0)
        assert found.shape == (2, 6, 6)
        assert (found - expected).abs().max() < 1e-5
        assert (found.sum(-1) - 1).abs().max() < 1e-6
        assert found.std() > 0.01, "the same everywhere"


@pytest.mark.portable
def test_looking_changes_nothing(network):
    before = network(X, T, Y)
    fused = [block.attn.fused_attn for block in network.blocks]
    with attention_maps(network, [1]) as maps:
        during = network(X, T, Y)
    seen = maps[1].clone()
    assert (during - before).abs().max() < 1e-5 * before.abs().max()
    assert torch.equal(network(X, T, Y), before)
    assert [block.attn.fused_attn for block in network.blocks] == fused
    network(X + 1, T, Y)
    assert torch.equal(maps[1], seen), "still looking"


def test_an_error_while_looking_leaves_the_network_as_it_was(network):
    fused = network.blocks[0].attn.fused_attn
    with pytest.raises(RuntimeError), attention_maps(network, [0]):
        network(X[:, :2], T, Y)
    assert network.blocks[0].attn.fused_attn == fused
    assert not network.blocks[0].attn.attn_drop._forward_hooks


@pytest.mark.portable
def test_maps_of_text_make_what_its_attention_says(monkeypatch):
    """With one head the mean over heads is all that attention knows: its output is made of the map and the values."""
    torch.manual_seed(0)
    network = DiT(
        input_size=4,
        patch_size=2,
        in_channels=3,
        hidden_size=48,
        depth=2,
        num_heads=1,
        num_classes=5,
        conditioning="text",
        text_width=7,
    )
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    network.double()  # sums in any order agree to 1e-12
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # maps are of float32 otherwise
    attention, said = network.blocks[1].text_attn, {}
    text = torch.randn(2, 9, 7).double()
    text[1, 5:] = 0  # padding
    attention.kv.register_forward_hook(lambda m, a, out: said.__setitem__("kv", out))
    attention.register_forward_hook(lambda m, a, out: said.__setitem__("out", out))
    with torch.no_grad(), text_maps(network, [1]) as maps:
        network(X[..., :4].double(), T, text)
    assert maps[1].shape == (2, 4, 9)
    assert not maps[1][1, :, 5:].any()
    assert (maps[1].sum(-1) - 1).abs().max() < 1e-12
    assert (
        attention.proj(maps[1] @ said["kv"].chunk(2, dim=-1)[1]) - said["out"]
    ).abs().max() < 1e-12
