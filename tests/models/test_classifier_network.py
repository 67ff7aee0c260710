"""The classifier of noisy latents."""

import pytest
import torch

from dit.errors import UserError
from dit.models.classifier import Classifier
from dit.models.dit import DiT
from dit.models.registry import create_model, is_classifier, parameters

SMALL = dict(
    input_size=8, patch_size=4, in_channels=3, hidden_size=16, depth=2, num_heads=2, num_classes=5
)


def fresh(**changes):
    torch.manual_seed(0)
    return Classifier(**{**SMALL, **changes})


def perturbed(**changes):
    """A network in which no weight is zero."""
    network = fresh(**changes)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def inputs(n=3, size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, *size, generator=generator), torch.rand(n, generator=generator) * 1000


def test_a_fresh_one_holds_all_classes_for_equally_likely():
    assert torch.equal(fresh()(*inputs()), torch.zeros(3, 5))


def test_each_image_is_told_by_itself_and_its_time():
    network, (x, t) = perturbed(), inputs()
    said = network(x, t)
    assert said.shape == (3, 5)
    later = t.clone()
    later[1] += 100
    moved = (network(x, later) - said).abs().amax(dim=1)
    assert moved[1] > 1e-3
    assert moved[[0, 2]].max() < 1e-5
    assert (network(x.flip(0), t.flip(0)).flip(0) - said).abs().max() < 1e-5


def test_it_tells_how_patches_lie():
    """Pooled tokens know their positions, so the same patches elsewhere are another image."""
    network, (x, t) = perturbed(), inputs()
    assert (network(x.roll(4, dims=-1), t) - network(x, t)).abs().max() > 1e-3


def test_its_trunk_is_that_of_dit():
    """With the same weights, its blocks say of an image what those of an unlabelled DiT say."""
    network, (x, t) = perturbed(), inputs()
    dit = DiT(**{**SMALL, "num_classes": 0})
    left = dit.load_state_dict(network.state_dict(), strict=False)
    assert all(name.startswith(("final_layer.", "y_embedder.")) for name in left.missing_keys)
    assert {name.split(".")[0] for name in left.unexpected_keys} == {"norm", "head"}
    torch.nn.init.zeros_(dit.y_embedder.embedding_table.weight)
    seen = []
    for trunk in (network, dit):
        trunk.blocks[-1].register_forward_hook(lambda m, a, out: seen.append(out))
    said = network(x, t)
    dit(x, t, torch.zeros(3, dtype=torch.long))
    assert torch.equal(*seen)
    assert torch.equal(network.head(network.norm(seen[0]).mean(1)), said)


def test_gradient_reaches_the_image_and_everything_but_the_positions():
    network, (x, t) = perturbed(), inputs()
    x.requires_grad_()
    network(x, t).square().sum().backward()
    assert {
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    } == {"pos_embed"}
    assert x.grad.abs().amin() > 0


def test_other_sizes():
    network = perturbed(input_size=(8, 16))
    assert network(*inputs(size=(8, 16))).shape == (3, 5)
    network.resize((16, 4))
    assert network(*inputs(size=(16, 4))).shape == (3, 5)
    with pytest.raises(UserError, match="10 x 8 with patch size 4"):
        network.resize((10, 8))


@pytest.mark.parametrize("num_classes", [0, 1])
def test_nothing_to_tell_apart(num_classes):
    with pytest.raises(UserError, match=f"a classifier of {num_classes} class"):
        fresh(num_classes=num_classes)


def test_by_name():
    shape = dict(input_size=8, in_channels=4, num_classes=10)
    with torch.device("meta"):
        network, dit = (create_model(f"{kind}-S/2", **shape) for kind in ("Classifier", "DiT"))
    assert isinstance(network, Classifier)
    assert len(network.blocks) == 12
    of_blocks = parameters(dit.blocks)
    assert parameters(network.blocks) == of_blocks
    assert [is_classifier(name) for name in ("Classifier-S/2", "DiT-S/2", "UNet-S")] == [
        True,
        False,
        False,
    ]
