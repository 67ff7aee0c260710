"""What --dry-run tells of each kind of network."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.text import load_text_encoder
from dit.errors import UserError
from dit.models.registry import multiply_adds, parameters
from dit.runs.card import ModelCard, NetworkSpec
from dit.training.cost.ddp_or_fsdp import frozen_bytes
from dit.training.cost.dry_run import budget
from dit.training.cost.memory import estimate

TINY = TrainConfig(
    model="DiT-Ti/4", vae="identity", image_size=8, global_batch_size=16, dry_run=True
)
CPU = torch.device("cpu")


def told(capsys, **changes):
    """The table as a mapping."""
    train(dataclasses.replace(TINY, **changes), Ranks())
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def spec(model, **changes):
    shape = dict(input_size=8, in_channels=3, num_classes=10, learn_sigma=False)
    return NetworkSpec(model=model, **{**shape, **changes})


@pytest.mark.parametrize(
    ("changes", "structure"),
    [
        ({}, "Diffusion Transformer, adaln-zero conditioning, 4 tokens of 4 x 4 latents"),
        (
            dict(conditioning="in-context"),
            "Diffusion Transformer, in-context conditioning, 4 tokens of 4 x 4 latents",
        ),
        (dict(model="UNet-S"), "U-Net of 3 levels"),
    ],
)
def test_every_network_is_described(capsys, changes, structure):
    rows = told(capsys, **changes)
    assert rows["model"].startswith(changes.get("model", "DiT-Ti/4"))
    assert rows["model"].endswith(f"parameters; {structure}")
    assert "10 classes" in rows["data"]
    assert "predicts v, label dropout 0.1" in rows["diffusion"]


def test_classifier_and_unconditional(capsys):
    rows = told(capsys, model="Classifier-Ti/4", label_dropout=0.0)
    assert rows["diffusion"] == "flow, tells the class of noised latents"
    rows = told(capsys, num_classes=0)
    assert ", unconditional, " in rows["data"]
    assert rows["diffusion"] == "flow, predicts v"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        (dict(steps=9, lr=1.0, keep=5, recompute="full"), None),
        (dict(model="DiT-Ti/2"), "model DiT-Ti/4 there, DiT-Ti/2 now"),
        (dict(seed=1), "seed 0 there"),
        (dict(global_batch_size=16), "global_batch_size 64 there"),
        (dict(ema=0.5), "ema 0.999 there"),
        (dict(ema_lengths=(0.1,)), "ema_lengths"),
        (dict(process="linear"), "process flow there"),
        (dict(num_classes=12), "num_classes"),
        (dict(image_size=16), "image_size"),
        (dict(flip=True), "flip"),
        (dict(time_shift=2.0), "time_shift"),
        (dict(conditioning="adaln"), "conditioning"),
        (dict(out=Path("elsewhere")), "with --out elsewhere"),
        (dict(steps=2), "--steps 2 for .*, which has done 3"),
        (dict(resume=None), "has checkpoints"),
    ],
)
def test_what_a_run_that_goes_on_refuses_is_refused(make_run, capsys, changes, said):
    run = make_run()
    going_on = dataclasses.replace(
        ModelCard.read(run).config, out=run, resume=str(run), dry_run=True
    )
    if said is None:
        assert "memory" in told(capsys, **{**vars(going_on), **changes})
        return
    for dry_run in (True, False):
        with pytest.raises(UserError, match=said):
            train(dataclasses.replace(going_on, **{**changes, "dry_run": dry_run}), Ranks())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model="DiT-Ti/2"), "has a network of model DiT-Ti/4, not DiT-Ti/2"),
        (dict(process="linear"), "trained with process flow, not linear"),
        (dict(init=Path("nowhere")), "no checkpoint in nowhere"),
    ],
)
def test_weights_to_start_from_are_looked_at(make_run, capsys, changes, said):
    init = make_run()
    assert "memory" in told(capsys, init=init)
    with pytest.raises(UserError, match=said):
        told(capsys, **{"init": init, **changes})


def test_text_is_reckoned_with_its_encoder(capsys):
    """8 tokens a caption, and the encoder's frozen weights."""
    encoder = load_text_encoder("digits")
    rows = told(capsys, conditioning="text")
    network = spec("DiT-Ti/4", conditioning="text", text_width=64)
    assert rows["compute"].startswith(
        f"{multiply_adds(network.model, 8, **network.sizes) / 1e9:.3g} G"
    )
    need = estimate(network, 16, CPU, "auto", text_tokens=8)
    assert (
        f"about {(need.total + 4 * parameters(encoder.network)) / 2**30:.2f} GiB" in rows["memory"]
    )


def test_memory_is_told_by_part(capsys):
    rows = told(capsys, precision="fp32", grad_accum=2)
    need = estimate(spec("DiT-Ti/4"), 8, CPU, "fp32", grad_accum=2)
    assert f"weights {need.weights / 2**30:.2f}, EMA " in rows["memory"]
    assert (
        f"AdamW {need.optimizer / 2**30:.2f}, gradients {need.gradients / 2**30:.2f}"
        in rows["memory"]
    )
    assert "bf16" not in rows["memory"]


def test_frozen_networks_count():
    need, network = (
        estimate(spec("DiT-Ti/4"), 8, CPU, "fp32"),
        torch.nn.Linear(2**14, 2**13, bias=False),
    )
    coder = SimpleNamespace(codec=SimpleNamespace(network=network))
    assert frozen_bytes(coder, SimpleNamespace(network=network)) == 2**30
    assert frozen_bytes(SimpleNamespace(codec=object()), None) == 0
    assert (
        budget(need, 2**30)
        == f"about {1 + need.total / 2**30:.2f}{budget(need, 0)[10:]}, frozen networks 1.00"
    )
