"""Weights of other programs: the release's .pt files in, diffusers' both ways."""

import argparse
import os

import pytest
import torch

from dit.build import build_network, build_process
from dit.commands.convert import import_release
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.card import NetworkSpec
from dit.runs.formats.diffusers import diffusers_config, from_diffusers, to_diffusers
from dit.runs.formats.dit_release import infer_spec, read_release
from dit.runs.weights import read_weights


def spec(**changes):
    sizes = dict(model="DiT-Ti/4", input_size=16, in_channels=3, num_classes=5, learn_sigma=True)
    return NetworkSpec(**(sizes | changes))


@pytest.fixture(scope="module")
def network():
    """A network without zeros."""
    torch.manual_seed(0)
    network = build_network(spec()).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        if name != "pos_embed":
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def weights(network):
    return network.state_dict()


def outputs(network):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return network(x, torch.tensor([3.0, 800.0]), torch.tensor([1, 5]))


def saved(tmp_path, content, **options):
    torch.save(content, tmp_path / "file.pt", **options)
    return tmp_path / "file.pt"


def same_tensors(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def without(state_dict, *names):
    return {name: tensor for name, tensor in state_dict.items() if name not in names}


# -- the release -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        dict(model="DiT-S/8", learn_sigma=False),
        dict(model="DiT-XL/2", input_size=64, in_channels=4, num_classes=1000),
        dict(model="DiT-L/1", in_channels=1, num_classes=1),
        dict(model="DiT-B/2", in_channels=16, learn_sigma=False),
    ],
)
def test_description_follows_from_the_shapes(changes):
    with torch.device("meta"):
        network = build_network(spec(**changes))
    assert infer_spec(network.state_dict()) == spec(**changes)


def test_depth_and_width_distinguish_all_sizes():
    assert len({(size["depth"], size["hidden_size"]) for size in SIZES.values()}) == len(SIZES)


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoints_of_the_release_give_their_ema(weights, tmp_path, zipped):
    ema = {name: tensor + 1 for name, tensor in weights.items()}
    flags = argparse.Namespace(model="DiT")
    content = {"model": weights, "ema": ema, "opt": {"lr": 1e-4}, "args": flags}
    file = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    found, state_dict = read_release(file)
    assert found == spec()
    assert same_tensors(state_dict, ema)
    assert same_tensors(read_release(saved(tmp_path, {"model": weights}))[1], weights)


class Malice:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "inside"])
def test_no_code_is_run(weights, tmp_path, where, zipped):
    trace = tmp_path / "trace"
    content = Malice(trace) if where == "alone" else {**weights, "extra": Malice(trace)}
    file = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"would run code.*mkdir"):
        read_release(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # it was not harmless
    assert trace.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-100],
        lambda content: content[:10],
        lambda content: b"",
        lambda content: b"hello, this is no checkpoint\n" * 100,
        lambda content: bytes(1000),
    ],
)
def test_damaged_files_are_refused(weights, tmp_path, damage):
    file = saved(tmp_path, weights)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="cannot be read"):
        read_release(file)
    with pytest.raises(UserError, match="no file"):
        read_release(tmp_path)


def test_missing_and_odd_tensors_are_named(weights, tmp_path):
    bias, qkv, patches = (
        "blocks.3.mlp.fc2.bias",
        "blocks.0.attn.qkv.weight",
        "x_embedder.proj.weight",
    )
    last_block = [name for name in weights if name.startswith("blocks.5.")]
    for content, message in [
        (without(weights, bias), f"no {bias} among"),
        (without(weights, "pos_embed"), "no pos_embed among"),
        ({**weights, "extra.weight": torch.ones(1)}, "unknown extra.weight"),
        ({**weights, bias: torch.ones(7)}, rf"{bias} is \[7\] where DiT-Ti/4 has \[256\]"),
        ({**weights, patches: torch.ones(256, 48)}, f"{patches} with 2 axes instead of 4"),
        (without(weights, *last_block), "5 blocks, width 256"),
        (without(weights, qkv), "5 blocks, width 256"),
        ([1, 2, 3], "no named tensors"),
        ({"model": 3}, "no named tensors"),
        ({}, "no x_embedder.proj.weight"),
    ]:
        with pytest.raises(UserError, match=message):
            read_release(saved(tmp_path, content))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_imported_file_is_ready_to_sample(network, weights, tmp_path, dtype):
    file = saved(tmp_path, {name: tensor.to(dtype) for name, tensor in weights.items()})
    card = import_release(file, tmp_path / "new" / "file.safetensors", vae="identity")
    imported = read_weights(tmp_path / "new" / "file.safetensors")
    assert imported.card == card
    assert card.network == spec()
    assert card.classes == ["0", "1", "2", "3", "4"]
    config = card.config
    assert (config.process, config.objective, config.learn_sigma) == ("linear", "eps", True)
    assert (config.image_size, config.vae, config.model) == (128, "identity", "DiT-Ti/4")
    assert build_process(config).end == 1000
    assert {tensor.dtype for tensor in imported.state_dict.values()} == {torch.float32}
    fresh = build_network(card.network).eval()
    fresh.load_state_dict(imported.state_dict, strict=True)
    if dtype == torch.float32:
        assert torch.equal(outputs(fresh), outputs(network))


# -- diffusers -------------------------------------------------------------------------------------


def test_diffusers_round_trip_is_exact(weights):
    theirs = to_diffusers(weights, spec())
    ours = from_diffusers(theirs, spec())
    assert same_tensors(ours, weights)
    assert same_tensors(to_diffusers(ours, spec()), theirs)


@pytest.mark.parametrize(
    "changes",
    # the first two have the names and shapes of a plain DiT
    [dict(block="plain+rope"), dict(block="plain+heads64"), dict(conditioning="tokens")],
)
def test_networks_that_diffusers_does_not_have_are_refused(weights, changes):
    other = spec(**changes)
    for act in (
        lambda: to_diffusers(build_network(other).state_dict(), other),
        lambda: from_diffusers(to_diffusers(weights, spec()), other),
        lambda: diffusers_config(other),
    ):
        with pytest.raises(UserError, match="for diffusers"):
            act()


def test_every_block_of_diffusers_gets_the_embedders(network, weights):
    theirs = to_diffusers(weights, spec())
    table = "norm1.emb.class_embedder.embedding_table.weight"
    for block in range(6):
        copy = theirs[f"transformer_blocks.{block}.{table}"]
        assert torch.equal(copy, network.y_embedder.embedding_table.weight)
    for part, tensor in zip("qkv", network.blocks[2].attn.qkv.weight.split(256), strict=True):
        assert torch.equal(theirs[f"transformer_blocks.2.attn1.to_{part}.weight"], tensor)


def test_positions_that_diffusers_does_not_have_are_refused(weights):
    moved = {**weights, "pos_embed": weights["pos_embed"] + 0.1}
    with pytest.raises(UserError, match="pos_embed differs"):
        to_diffusers(moved, spec())


def test_odd_files_of_diffusers_are_refused(weights):
    theirs = to_diffusers(weights, spec())
    table = "transformer_blocks.4.norm1.emb.class_embedder.embedding_table.weight"
    for content, message in [
        (without(theirs, "proj_out_2.bias"), "no proj_out_2.bias among"),
        ({**theirs, "extra": torch.ones(1)}, "unknown extra"),
        ({**theirs, table: theirs[table] + 1}, "not the same in all blocks"),
        ({**theirs, "proj_out_2.bias": torch.ones(1)}, r"final_layer.linear.bias is \[1\]"),
    ]:
        with pytest.raises(UserError, match=message):
            from_diffusers(content, spec())
