"""The classifier of noisy latents."""

import pytest
import torch
from helpers.networks import TRUNK, changed_images, fresh_dit, inputs, perturb, without_gradient

from dit.errors import UserError
from dit.models.classifier import Classifier
from dit.models.registry import count_parameters, create_model, is_classifier


def fresh(**changes):
    torch.manual_seed(0)
    return Classifier(**{**TRUNK, **changes})


def perturbed(**changes):
    return perturb(fresh(**changes))


def test_all_classes_are_equally_likely_to_a_fresh_one():
    x, t, _ = inputs()
    assert torch.equal(fresh()(x, t), torch.zeros(3, 5))


def test_logits_depend_on_image_time_and_positions():
    network, (x, t, _) = perturbed(), inputs()
    logits = network(x, t)
    later = t.clone()
    later[1] += 100
    assert changed_images(network(x, later), logits) == [False, True, False]
    assert (network(x.flip(0), t.flip(0)).flip(0) - logits).abs().max() < 1e-5
    # the same patches in other positions are another image
    assert (network(x.roll(4, dims=-1), t) - logits).abs().max() > 1e-3


def test_its_blocks_compute_what_those_of_an_unlabelled_dit_compute():
    network, (x, t, _) = perturbed(), inputs()
    dit = fresh_dit(num_classes=0)
    other = dit.load_state_dict(network.state_dict(), strict=False)
    assert all(name.startswith(("final_layer.", "y_embedder.")) for name in other.missing_keys)
    assert {name.split(".")[0] for name in other.unexpected_keys} == {"norm", "head"}
    torch.nn.init.zeros_(dit.y_embedder.embedding_table.weight)
    tokens = []
    for trunk in (network, dit):
        trunk.blocks[-1].register_forward_hook(lambda m, a, out: tokens.append(out))
    logits = network(x, t)
    dit(x, t, torch.zeros(3, dtype=torch.long))
    assert torch.equal(*tokens)
    assert torch.equal(network.head(network.norm(tokens[0]).mean(1)), logits)


def test_image_and_every_parameter_but_the_positions_get_a_gradient():
    network, (x, t, _) = perturbed(), inputs()
    x.requires_grad_()
    network(x, t).square().sum().backward()
    assert without_gradient(network) == {"pos_embed"}
    assert x.grad.abs().amin() > 0


def test_other_sizes():
    network = perturbed(input_size=(8, 16))
    x, t, _ = inputs(size=(16, 4))
    network.resize((16, 4))
    assert network(x, t).shape == (3, 5)
    with pytest.raises(UserError, match="10 x 8 with patch size 4"):
        network.resize((10, 8))


@pytest.mark.parametrize("num_classes", [0, 1])
def test_fewer_than_two_classes_are_refused(num_classes):
    with pytest.raises(UserError, match=f"a classifier of {num_classes} class"):
        fresh(num_classes=num_classes)


def test_by_name():
    shape = dict(input_size=8, in_channels=4, num_classes=10)
    with torch.device("meta"):
        network, dit = (create_model(f"{kind}-S/2", **shape) for kind in ("Classifier", "DiT"))
    assert isinstance(network, Classifier)
    assert count_parameters(network.blocks) == count_parameters(dit.blocks)
    names = ("Classifier-S/2", "DiT-S/2", "UNet-S")
    assert [is_classifier(name) for name in names] == [True, False, False]
