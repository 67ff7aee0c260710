"""What --dry-run tells of each kind of network, and that the memory it tells is what autograd keeps."""

import dataclasses

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dit.build import build_network
from dit.config import TrainConfig
from dit.hardware import Ranks, autocast, choose_attention
from dit.models.create import blank_inputs, multiply_adds, parameters
from dit.runs import NetworkSpec
from dit.text import load_text_encoder
from dit.training.dry_run import activation_bytes, weights_bytes
from dit.training.trainer import train

TINY = TrainConfig(model="DiT-Ti/4", vae="identity", image_size=8, global_batch_size=16, dry_run=True)
CPU = torch.device("cpu")


def told(capsys, **changes):
    """The table as a mapping."""
    train(dataclasses.replace(TINY, **changes), Ranks())
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def spec(model, **changes):
    shape = dict(input_size=8, in_channels=3, num_classes=10, learn_sigma=False)
    return NetworkSpec(model=model, **{**shape, **changes})


@pytest.mark.parametrize(("changes", "structure"), [
    ({}, "Diffusion Transformer, adaln-zero conditioning, 4 tokens of 4 x 4 latents"),
    (dict(conditioning="in-context"), "Diffusion Transformer, in-context conditioning, 4 tokens of 4 x 4 latents"),
    (dict(model="UNet-S"), "U-Net of 3 levels"),
])
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


def test_text_is_reckoned_with_its_encoder(capsys):
    """8 tokens a caption, and the encoder's frozen weights."""
    encoder = load_text_encoder("digits")
    rows = told(capsys, conditioning="text", model="DiT-S/4")
    network = spec("DiT-S/4", conditioning="text", text_width=64)
    assert rows["compute"].startswith(f"{multiply_adds(network.model, 8, **network.sizes) / 1e9:.3g} G")
    count = parameters(build_network(network))
    needed = weights_bytes(count) + 4 * parameters(encoder.network) + activation_bytes(network, 16, CPU, "auto", 8)
    assert f"about {needed / 2**30:.2f} GiB" in rows["memory"]
    assert rows["memory"].endswith("and the text encoder")


def really_kept(network, inputs, precision):
    """Bytes that a forward pass on real tensors keeps, parameters aside."""
    kept = {}
    choose_attention(network, CPU, precision)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(CPU, precision):
        out = network(*inputs)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    assert out.requires_grad
    return sum(size for address, size in kept.items() if address not in own)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", [
    spec("DiT-Ti/2"), spec("DiT-Ti/2", conditioning="text", text_width=32), spec("UNet-S"), spec("Classifier-Ti/2"),
], ids=lambda s: f"{s.model}-{s.conditioning}")
def test_memory_of_activations_is_what_autograd_keeps(network, precision):
    found = activation_bytes(network, 3, CPU, precision, 8)
    kept = really_kept(build_network(network), blank_inputs(network.model, 3, 8, **network.sizes), precision)
    assert found == pytest.approx(kept, rel=0.005)


def test_memory_grows_with_the_batch():
    few, more, most = (activation_bytes(spec("DiT-Ti/2"), batch, CPU, "bf16") for batch in (4, 8, 16))
    assert most - more == pytest.approx(2 * (more - few), rel=0.001)  # what does not grow are the weights in bf16
