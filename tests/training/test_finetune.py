"""Fine-tuning: start from another run's EMA, with the same or other classes."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import random_weights
from helpers.foreign import SIT, checkpoint, dit_weights, saved
from helpers.training import resume, run

from dit.build import build_network
from dit.commands.convert import write_foreign
from dit.config import TrainConfig
from dit.errors import UserError
from dit.models.conditioning import CONDITIONINGS
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.checkpoint_files import find_weights
from dit.runs.formats.foreign import read_foreign
from dit.runs.weights import read_header, write_weights
from dit.training.finetune import PARTS, initialise

pytestmark = pytest.mark.usefixtures("small_networks")
TABLE = "y_embedder.embedding_table.weight"
KINDS = [("DiT-Ti/4", way) for way in CONDITIONINGS]
KINDS += [("UNet-S", "adaln-zero"), ("Classifier-Ti/4", "adaln-zero")]


def card(model: str, conditioning: str = "adaln-zero", num_classes: int = 5) -> ModelCard:
    config = TrainConfig(
        model=model, conditioning=conditioning, vae="identity", image_size=8, label_dropout=0
    )
    spec = NetworkSpec(
        model=model,
        input_size=8,
        in_channels=3,
        num_classes=num_classes,
        learn_sigma=False,
        conditioning=conditioning,
        text_width=12 if conditioning == "text" else None,
    )
    return ModelCard(config=config, network=spec, classes=[str(i) for i in range(num_classes)])


def trained(folder: Path, *kind: str) -> Path:
    weights = folder / "ema.safetensors"
    write_weights(weights, random_weights(card(*kind).network), card(*kind), step=3)
    return weights


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_same_classes_all_weights_are_loaded(tmp_path, kind):
    network = build_network(card(*kind).network)
    initialise(network, card(*kind), trained(tmp_path, *kind))
    expected = random_weights(card(*kind).network)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [3, 8])
def test_with_other_classes_only_their_weights_start_fresh(tmp_path, kind, num_classes):
    new = card(*kind, num_classes=num_classes)
    network = build_network(new.network)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    initialise(network, new, trained(tmp_path, *kind))
    expected, found = random_weights(card(*kind).network), network.state_dict()
    changed = {name for name, value in found.items() if not torch.equal(value, expected[name])}
    if kind[1] == "text":
        assert changed == set()
    elif kind[0].startswith("Classifier"):
        assert changed == {"head.weight", "head.bias"}
        assert torch.equal(found["head.weight"], fresh["head.weight"])
    else:
        assert changed == {TABLE}
        assert torch.equal(found[TABLE][:-1], fresh[TABLE][:-1])
        assert torch.equal(found[TABLE][-1], expected[TABLE][-1]), "the null label knows all images"


def test_weights_of_another_conditioning_are_refused(tmp_path):
    weights = trained(tmp_path, "DiT-Ti/4", "in-context")
    new = card("DiT-Ti/4", "adaln")
    message = "trained with --conditioning in-context, not adaln"
    with pytest.raises(UserError, match=message) as error:
        initialise(build_network(new.network), new, weights)
    assert error.value.do == "pass --conditioning in-context"


def test_weights_of_another_network_are_refused(tmp_path):
    new = card("DiT-Ti/4")
    spec = replace(new.network, learn_sigma=True, unet_attention=(4, 2))
    weights = trained(tmp_path, "UNet-S")
    message = (
        "has a network of model UNet-S, not DiT-Ti/4; learned variance no, not yes; attention at "
        "the usual, not 4 2;"
    )
    with pytest.raises(UserError, match=message):
        initialise(build_network(new.network), replace(new, network=spec), weights)


def test_every_part_of_a_network_is_compared():
    # objectives are compared, of which meanflow alone has intervals; their smoothing is taken over;
    # a head may be added, not lost
    aside = {"num_classes", "conditioning", "interval", "interval_smoothing", "inner_head"}
    assert {*PARTS} | aside == {field.name for field in fields(NetworkSpec)}


def test_a_run_that_starts_from_sit_embeds_times_as_sit_does(tmp_path):
    weights = dit_weights(input_size=8, num_classes=10)
    foreign = read_foreign(saved(tmp_path, checkpoint(weights, num_classes=10, **SIT)))
    start = tmp_path / "sit.safetensors"
    write_foreign(foreign, start, vae="identity")
    out = run(tmp_path / "run", init=start, steps=2, ckpt_every=2)
    assert ModelCard.read(out).network.time_scale == 1e-3

    # the file is not needed to go on
    start.unlink()
    resume(out, init=start, steps=3, ckpt_every=2)
    assert read_header(find_weights(out))[0].network.time_scale == 1e-3
