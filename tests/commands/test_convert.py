"""`dit convert`: weights of other programs as files to sample from; diffusers' both ways."""

from dataclasses import replace

import pytest
import torch
from helpers.autoencoders import save_tiny
from helpers.foreign import (
    SIT,
    TABLE,
    checkpoint,
    dit_spec,
    dit_weights,
    same_tensors,
    saved,
    without,
)
from safetensors.torch import save_file

from dit.build import build_network, build_process
from dit.cli import main
from dit.config import TrainConfig
from dit.errors import UserError
from dit.runs.card import RELEASE_DATA, ModelCard, class_mismatch
from dit.runs.formats.diffusers import diffusers_config, from_diffusers, to_diffusers
from dit.runs.formats.imagenet import CLASSES, imagenet_names
from dit.runs.weights import read_weights
from dit.sampling.classes import class_ids, given_names
from dit.sampling.load import load_run

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def weights(small_networks):
    return dit_weights()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_imported_file_is_ready_to_sample(weights, tmp_path, dtype, capsys):
    file = saved(tmp_path, {name: tensor.to(dtype) for name, tensor in weights.items()})
    out = tmp_path / "new" / "file.safetensors"
    assert main(["convert", str(file), str(out), "--format", "dit", "--vae", "identity"]) == 0
    assert capsys.readouterr().out.endswith(
        f"DiT-Ti/4, 5 classes, in {out}; next: dit sample --run {out} "
        "--cfg-scale 4 --cfg-channels 3\n"
    )

    imported = read_weights(out)
    card, config = imported.card, imported.card.config
    assert card.network == dit_spec()
    assert card.classes == ["0", "1", "2", "3", "4"]
    assert (config.process, config.objective, config.learn_sigma) == ("linear", "eps", True)
    assert (config.image_size, config.vae, config.model) == (128, "identity", "DiT-Ti/4")
    assert build_process(config).end == 1000
    stored = {name: tensor.to(dtype).float() for name, tensor in weights.items()}
    assert same_tensors(imported.state_dict, stored)
    build_network(card.network).load_state_dict(imported.state_dict, strict=True)


def test_an_autoencoder_of_other_latents_is_refused(weights, tmp_path, capsys):
    file = saved(tmp_path, weights)
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(file), str(out), "--format", "dit", "--vae", "tiny"]) == 0
    assert main(["sample", "--run", str(out)]) == 2
    assert "makes latents of 3 channels, and --vae tiny has 4" in capsys.readouterr().err


def test_the_next_line_works_as_typed_for_two_channels(tmp_path, capsys):
    vae = save_tiny(tmp_path / "vae")
    sizes = dict(in_channels=2, input_size=8)
    file = tmp_path / "dit.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in dit_weights(**sizes).items()}, file)
    out = tmp_path / "out.safetensors"
    flags = ["--format", "dit", "--vae", str(vae), "--classes", "a,b,c,d,e"]
    assert main(["convert", str(file), str(out), *flags]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split("next: dit ")[1]
    assert command == f"sample --run {out} --cfg-scale 4"
    assert main([*command.split(), "--steps", "1", "--per-class", "1"]) == 0


def test_it_says_how_a_file_was_read(weights, tmp_path, capsys):
    named = {f"module.{name}": tensor for name, tensor in weights.items()}
    file = saved(tmp_path, checkpoint(named, **SIT))
    out = tmp_path / "sit.safetensors"
    assert main(["convert", str(file), str(out), "--vae", "identity"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "read as SiT: its flags say path_type Linear, prediction velocity",
        "the weights under `ema`, names without `module.`",
        "the last of 6 labels is taken for the null class; --num-classes 6 if it was trained "
        "without label dropout",
    ]
    run = load_run(out, torch.device("cpu"))
    assert run.denoise.network.t_embedder.time_scale == 1e-3


def test_a_network_without_a_null_class_is_not_to_be_guided(weights, tmp_path, capsys):
    content = {**weights, TABLE: weights[TABLE][:5].clone()}
    file = saved(tmp_path, checkpoint(content, model="DiT-Ti/4", num_classes=5))
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(file), str(out), "--vae", "identity"]) == 0
    assert capsys.readouterr().out.endswith(f"5 classes, in {out}; next: dit sample --run {out}\n")
    assert main(["sample", "--run", str(out), "--cfg-scale", "2"]) == 2


def test_imagenet_has_a_thousand_names():
    names = imagenet_names()
    assert len(set(names)) == CLASSES
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")

    card = ModelCard(config=TrainConfig(data=RELEASE_DATA), network=dit_spec(), classes=names)
    card = replace(card, network=replace(card.network, num_classes=CLASSES))
    assert class_ids(["golden retriever,0,tench"], card)[0] == [207, 0, 0]
    assert class_ids(["crane", "crane bird"], card)[0] == [517, 134]
    with pytest.raises(UserError, match=r"did you mean flat-coated retriever or curly-coated"):
        class_ids(["retriever"], card)
    with pytest.raises(UserError, match="did you mean golden retriever"):
        class_ids(["Golden Retreiver"], card)
    # folders of ImageNet have other names for the same classes
    trained = replace(card, classes=["n01440764"], class_counts=[1300])
    assert class_mismatch(trained, card) is None
    assert class_mismatch(trained, replace(trained, classes=["dog"])) == (0, "n01440764", "dog")


def test_a_network_of_a_thousand_classes_has_their_names(tmp_path, capsys):
    file = saved(tmp_path, dit_weights(num_classes=CLASSES))
    out = tmp_path / "new.safetensors"
    argv = ["convert", str(file), str(out), "--format", "dit", "--vae", "identity"]
    assert main(argv) == 0
    assert "1000 classes have ImageNet's names" in capsys.readouterr().out
    assert read_weights(out).card.classes == imagenet_names()
    assert main(["info", str(out), "--classes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1001
    assert lines[208] == "207  golden retriever"

    names = tmp_path / "names.txt"
    names.write_text("".join(f"class, {i}\n" for i in range(CLASSES)))
    assert main([*argv, "--classes", str(names)]) == 0
    assert read_weights(out).card.classes[7] == "class, 7"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cat", "dog"], "--classes cat dog with 2 names; expected 5, one for each class"),
        (["a,b,,d,e"], "an empty name of class 2"),
        ([], "--classes with 0 names"),
    ],
)
def test_names_are_one_for_each_class(words, message):
    with pytest.raises(UserError, match=message):
        given_names(words, 5)


def test_the_output_is_a_safetensors_file(tmp_path, capsys):
    assert main(["convert", "in.pt", str(tmp_path / "out.pt"), "--format", "dit"]) == 2
    assert f"output {tmp_path / 'out.pt'}; expected a file that ends" in capsys.readouterr().err


def test_published_files_need_their_format(weights, tmp_path, capsys):
    file = saved(tmp_path, weights)
    assert main(["convert", str(file), str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file} may be a DiT or a SiT: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


# -- diffusers -------------------------------------------------------------------------------------


def test_diffusers_round_trip_is_exact(weights):
    theirs = to_diffusers(weights, dit_spec())
    ours = from_diffusers(theirs, dit_spec())
    assert same_tensors(ours, weights)
    assert same_tensors(to_diffusers(ours, dit_spec()), theirs)


@pytest.mark.parametrize(
    "changes",
    # the first two have the names and shapes of a plain DiT
    [dict(block="plain+rope"), dict(block="plain+heads64"), dict(conditioning="tokens")],
)
def test_networks_that_diffusers_does_not_have_are_refused(weights, changes):
    other = dit_spec(**changes)
    for act in (
        lambda: to_diffusers(build_network(other).state_dict(), other),
        lambda: from_diffusers(to_diffusers(weights, dit_spec()), other),
        lambda: diffusers_config(other),
    ):
        with pytest.raises(UserError, match="for diffusers"):
            act()


def test_every_block_of_diffusers_gets_the_embedders(weights):
    theirs = to_diffusers(weights, dit_spec())
    table = "norm1.emb.class_embedder.embedding_table.weight"
    for block in range(2):
        assert torch.equal(theirs[f"transformer_blocks.{block}.{table}"], weights[TABLE])
    parts = weights["blocks.1.attn.qkv.weight"].split(64)
    for part, tensor in zip("qkv", parts, strict=True):
        assert torch.equal(theirs[f"transformer_blocks.1.attn1.to_{part}.weight"], tensor)


def test_positions_and_times_that_diffusers_does_not_have_are_refused(weights):
    moved = {**weights, "pos_embed": weights["pos_embed"] + 0.1}
    with pytest.raises(UserError, match="pos_embed differs"):
        to_diffusers(moved, dit_spec())
    with pytest.raises(UserError, match=r"times scaled by 0.001"):
        to_diffusers(weights, dit_spec(time_scale=1e-3))


def test_odd_files_of_diffusers_are_refused(weights):
    theirs = to_diffusers(weights, dit_spec())
    table = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    for content, message in [
        (without(theirs, "proj_out_2.bias"), "no proj_out_2.bias among"),
        ({**theirs, "extra": torch.ones(1)}, "unknown extra"),
        ({**theirs, table: theirs[table] + 1}, "not the same in all blocks"),
        ({**theirs, "proj_out_2.bias": torch.ones(1)}, r"final_layer.linear.bias is \[1\]"),
    ]:
        with pytest.raises(UserError, match=message):
            from_diffusers(content, dit_spec())
