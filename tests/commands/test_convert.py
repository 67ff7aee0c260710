"""Foreign checkpoints: the release's .pt files in, diffusers' both ways; nothing in them may run."""

import argparse
import os

import pytest
import torch

from dit.build import build_network, build_process
from dit.commands.convert import import_release
from dit.runs.formats import diffusers, release
from dit.errors import UserError
from dit.models.dit import SIZES
from dit.runs.card import NetworkSpec
from dit.runs.weights import read_weights


def spec(**changes):
    return NetworkSpec(
        **{
            **dict(model="DiT-Ti/4", input_size=16, in_channels=3, num_classes=5, learn_sigma=True),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def network():
    """A network without zeros."""
    torch.manual_seed(0)
    made = build_network(spec()).requires_grad_(False).eval()
    for name, parameter in made.named_parameters():
        if name != "pos_embed":
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def release_file(network, tmp_path_factory):
    file = tmp_path_factory.mktemp("release") / "DiT-Ti-4.pt"
    torch.save(network.state_dict(), file)
    return file


def outputs(network):
    generator = torch.Generator().manual_seed(0)
    return network(
        torch.randn(2, 3, 16, 16, generator=generator),
        torch.tensor([3.0, 800.0]),
        torch.tensor([1, 5]),
    )


def saved(tmp_path, content, **options):
    torch.save(content, tmp_path / "file.pt", **options)
    return tmp_path / "file.pt"


def test_release_file_loads_strictly(network, release_file):
    found, state_dict = release.read_release(release_file)
    assert found == spec()
    fresh = build_network(found).eval()
    fresh.load_state_dict(state_dict, strict=True)
    assert torch.equal(outputs(fresh), outputs(network))


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
        made = build_network(spec(**changes))
    assert release.infer_spec(made.state_dict()) == spec(**changes)


def test_depth_and_width_tell_all_sizes_apart():
    assert len({(size["depth"], size["hidden_size"]) for size in SIZES.values()}) == len(SIZES)


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoints_of_the_release_give_their_ema(network, tmp_path, zipped):
    ema = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    content = {
        "model": network.state_dict(),
        "ema": ema,
        "opt": {"lr": 1e-4},
        "args": argparse.Namespace(model="DiT"),
    }
    found, state_dict = release.read_release(
        saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    )
    assert found == spec()
    assert all(torch.equal(state_dict[name], ema[name]) for name in ema)
    _, state_dict = release.read_release(saved(tmp_path, {"model": network.state_dict()}))
    assert torch.equal(state_dict["pos_embed"], network.pos_embed)


class Malice:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "inside"])
def test_no_code_is_run(network, tmp_path, where, zipped):
    trace = tmp_path / "trace"
    content = (
        Malice(trace) if where == "alone" else {**network.state_dict(), "extra": Malice(trace)}
    )
    file = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"would run code.*mkdir"):
        release.read_release(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # it was not harmless
    assert trace.exists()


def test_damaged_and_wrong_files(release_file, tmp_path):
    whole = release_file.read_bytes()
    for name, content in {
        "truncated": whole[: len(whole) // 2],
        "short": whole[:-100],
        "head": whole[:10],
        "empty": b"",
        "text": b"hello, this is no checkpoint\n" * 100,
        "zeros": bytes(1000),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="can not be read"):
            release.read_release(tmp_path / name)
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(UserError, match="no file"):
            release.read_release(path)


def without(state_dict, *names):
    return {name: tensor for name, tensor in state_dict.items() if name not in names}


def test_missing_and_odd_tensors_are_named(network, tmp_path):
    good = network.state_dict()
    bias, qkv = "blocks.3.mlp.fc2.bias", "blocks.0.attn.qkv.weight"
    for content, message in [
        (without(good, bias), f"no {bias} among"),
        (without(good, "pos_embed"), "no pos_embed among"),
        ({**good, "extra.weight": torch.ones(1)}, "unknown extra.weight"),
        ({**good, bias: torch.ones(7)}, rf"{bias} is \[7\] where DiT-Ti/4 has \[256\]"),
        (
            {**good, "x_embedder.proj.weight": torch.ones(256, 48)},
            "x_embedder.proj.weight with 2 axes instead of 4",
        ),
        ({**good, "final_layer.linear.bias": torch.ones(48)}, "final_layer.linear.bias"),
        (
            without(good, *(name for name in good if name.startswith("blocks.5."))),
            "5 blocks, width 256",
        ),
        (without(good, qkv), "5 blocks, width 256"),
        ([1, 2, 3], "no named tensors"),
        ({"model": 3}, "no named tensors"),
        ({}, "no x_embedder.proj.weight"),
    ]:
        with pytest.raises(UserError, match=message):
            release.read_release(saved(tmp_path, content))


def test_imported_file_is_ready_to_sample(network, release_file, tmp_path):
    card = import_release(
        release_file, tmp_path / "new" / "DiT-Ti-4.safetensors", vae="identity"
    )
    weights = read_weights(tmp_path / "new" / "DiT-Ti-4.safetensors")
    assert weights.card == card
    assert weights.card.network == spec()
    assert weights.card.classes == ["0", "1", "2", "3", "4"]
    config = weights.card.config
    assert (config.process, config.objective, config.learn_sigma) == ("linear", "eps", True)
    assert (config.image_size, config.vae, config.model) == (128, "identity", "DiT-Ti/4")
    assert build_process(config).end == 1000
    fresh = build_network(weights.card.network).eval()
    fresh.load_state_dict(weights.state_dict, strict=True)
    assert torch.equal(outputs(fresh), outputs(network))


def test_half_precision_is_imported_as_float32(network, tmp_path):
    file = saved(tmp_path, {name: tensor.half() for name, tensor in network.state_dict().items()})
    import_release(file, tmp_path / "out.safetensors")
    assert {t.dtype for t in read_weights(tmp_path / "out.safetensors").state_dict.values()} == {
        torch.float32
    }


def test_diffusers_round_trip_is_exact(network):
    there = diffusers.to_diffusers(network.state_dict(), spec())
    back = diffusers.from_diffusers(there, spec())
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in network.state_dict().items())
    again = diffusers.to_diffusers(back, spec())
    assert again.keys() == there.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in there.items())


def test_every_block_of_diffusers_gets_the_embedders(network):
    there = diffusers.to_diffusers(network.state_dict(), spec())
    table = network.y_embedder.embedding_table.weight
    for block in range(6):
        assert torch.equal(
            there[f"transformer_blocks.{block}.norm1.emb.class_embedder.embedding_table.weight"],
            table,
        )
    q, k, v = network.blocks[2].attn.qkv.weight.split(256)
    assert torch.equal(there["transformer_blocks.2.attn1.to_q.weight"], q)
    assert torch.equal(there["transformer_blocks.2.attn1.to_k.weight"], k)
    assert torch.equal(there["transformer_blocks.2.attn1.to_v.weight"], v)


def test_what_diffusers_can_not_hold_is_refused(network):
    moved = {**network.state_dict(), "pos_embed": network.pos_embed + 0.1}
    with pytest.raises(UserError, match="pos_embed differs"):
        diffusers.to_diffusers(moved, spec())


def test_odd_files_of_diffusers_are_refused(network):
    there = diffusers.to_diffusers(network.state_dict(), spec())
    table = "transformer_blocks.4.norm1.emb.class_embedder.embedding_table.weight"
    for content, message in [
        (without(there, "proj_out_2.bias"), "no proj_out_2.bias among"),
        ({**there, "extra": torch.ones(1)}, "unknown extra"),
        ({**there, table: there[table] + 1}, "not the same in all blocks"),
        ({**there, "proj_out_2.bias": torch.ones(1)}, r"final_layer.linear.bias is \[1\]"),
    ]:
        with pytest.raises(UserError, match=message):
            diffusers.from_diffusers(content, spec())
