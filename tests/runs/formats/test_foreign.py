"""Whose weights a file has, what its flags say, and what is demanded where nothing tells."""

import re

import pytest
import torch
from helpers.foreign import (
    REPA,
    SIT,
    TABLE,
    checkpoint,
    dit_spec,
    dit_weights,
    repa_weights,
    same_tensors,
    saved,
    without,
)
from safetensors.torch import load_file, save_file

from dit.build import build_network
from dit.commands.convert import write_foreign
from dit.config import SamplerConfig
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.card import ModelCard
from dit.runs.formats.dit_release import infer_spec
from dit.runs.formats.foreign import read_foreign
from dit.sampling.resolve import validate

pytestmark = pytest.mark.usefixtures("small_networks")
OUTPUT = "final_layer.linear.weight"


def with_zero_variance():
    """Weights as SiT's training leaves them: no gradient reaches the outputs for the variance."""
    weights = dit_weights()
    rows = weights[OUTPUT].unflatten(0, (-1, 6))
    rows[:, 3:] = 0
    return weights


def without_null_class():
    weights = dit_weights()
    return {**weights, TABLE: weights[TABLE][:5].clone()}


# -- whose it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "flags", "format", "because"),
    [
        (dit_weights, dict(model="DiT-Ti/4"), "dit", "its flags say model DiT-Ti/4"),
        (dit_weights, dict(model="SiT-Ti/4"), "sit", "its flags say model SiT-Ti/4"),
        (dit_weights, dict(model="DiT-Ti/4", prediction="eps"), "dit", "its flags say model DiT"),
        (dit_weights, SIT, "sit", "path_type Linear, prediction velocity"),
        (dit_weights, dict(SIT, model="DiT-Ti/4"), "sit", "path_type Linear"),
        (repa_weights, REPA, "repa", "it has REPA's projectors"),
        (repa_weights, {}, "repa", "it has REPA's projectors"),
        (dit_weights, dict(REPA, model="SiT-B/2"), "repa", "path_type linear, prediction v"),
    ],
)
def test_flags_and_projectors_tell(tmp_path, weights, flags, format, because):
    found = read_foreign(saved(tmp_path, checkpoint(weights(), **flags)))
    assert found.format == format
    assert because in found.notes[0]
    assert found.config("identity").process == ("linear" if format == "dit" else "flow")
    build_network(found.spec).load_state_dict(found.state_dict)


def test_a_checkpoint_without_flags_is_read_as_the_releases_and_says_so(tmp_path):
    found = read_foreign(saved(tmp_path, {"ema": dit_weights()}))
    assert found.format == "dit"
    assert "nothing in it tells a DiT from a SiT; --format sit" in found.notes[0]
    assert same_tensors(found.state_dict, dit_weights())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dit_weights, "nothing in the file tells"),
        (lambda: {"ema": with_zero_variance()}, "as SiT's training leaves them"),
        (lambda: {"ema": dit_weights(learn_sigma=False)}, "no outputs for the variance"),
    ],
)
def test_what_tells_nothing_is_not_guessed(tmp_path, content, reason):
    file = saved(tmp_path, content())
    with pytest.raises(UserError, match=reason) as error:
        read_foreign(file)
    assert str(file) in error.value.given
    assert "--format dit" in error.value.do
    assert "--format sit" in error.value.do
    for asked in ("dit", "sit", "repa"):
        found = read_foreign(file, asked)
        assert found.format == asked
        build_network(found.spec).load_state_dict(found.state_dict)


@pytest.mark.parametrize(
    ("content", "asked", "found"),
    [
        (lambda: checkpoint(dit_weights(), **SIT), "dit", "sit"),
        (lambda: checkpoint(dit_weights(), **SIT), "repa", "sit"),
        (repa_weights, "sit", "repa"),
    ],
)
def test_a_format_against_what_the_file_says_is_refused(tmp_path, content, asked, found):
    with pytest.raises(UserError, match=f"--format {asked} for .*; expected --format {found}"):
        read_foreign(saved(tmp_path, content()), asked)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(SIT, path_type="GVP"), "path_type GVP; expected path_type Linear of SiT"),
        (dict(SIT, prediction="score"), "prediction score; expected prediction velocity of SiT"),
        (dict(REPA, path_type="cosine"), "path_type cosine; expected path_type linear of REPA"),
        (dict(model="DiT-Ti/4", predict_xstart=True), "predict_xstart True"),
        (dict(model="DiT-Ti/4", noise_schedule="squaredcos_cap_v2"), "noise_schedule squaredcos"),
    ],
)
def test_other_processes_are_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        read_foreign(saved(tmp_path, checkpoint(dit_weights(), **flags)))


# -- shapes and classes ----------------------------------------------------------------------------


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
        network = build_network(dit_spec(**changes))
    assert infer_spec(network.state_dict()) == dit_spec(**changes)


def test_depth_and_width_distinguish_all_sizes():
    assert len({(size["depth"], size["hidden_size"]) for size in SIZES.values()}) == len(SIZES)


@pytest.mark.parametrize(
    ("weights", "flags", "asked", "classes", "guidable"),
    [
        (dit_weights, dict(num_classes=5), None, 5, True),
        (dit_weights, {}, None, 5, True),
        (dit_weights, {}, 6, 6, False),
        (dit_weights, dict(num_classes=6), 5, 5, True),
        (dit_weights, dict(num_classes=6), None, 6, False),
        (dit_weights, dict(class_dropout_prob=0), None, 6, False),
        (without_null_class, dict(num_classes=5), None, 5, False),
        (without_null_class, dict(class_dropout_prob=0.0), None, 5, False),
    ],
)
def test_the_null_class_is_there_or_not(tmp_path, weights, flags, asked, classes, guidable):
    file = saved(tmp_path, checkpoint(weights(), model="DiT-Ti/4", **flags))
    found = read_foreign(file, num_classes=asked)
    assert found.spec.num_classes == classes
    assert same_tensors(
        {TABLE: found.state_dict[TABLE][: len(weights()[TABLE])]}, {TABLE: weights()[TABLE]}
    )

    # all classes can be drawn, and guidance needs a null class that was trained
    build_network(found.spec).load_state_dict(found.state_dict)
    card = ModelCard(config=found.config("identity"), network=found.spec, classes=[])
    validate(SamplerConfig(), card)
    if guidable:
        validate(SamplerConfig(cfg_scale=4.0), card)
    else:
        with pytest.raises(UserError, match="trained with --label-dropout 0"):
            validate(SamplerConfig(cfg_scale=4.0), card)


def test_a_round_label_table_is_not_guessed(tmp_path):
    file = saved(tmp_path, checkpoint(dit_weights(num_classes=9), model="DiT-Ti/4"))
    with pytest.raises(UserError, match="a label table of 10 rows") as error:
        read_foreign(file)
    assert error.value.do == "pass --num-classes 9 if it is, or --num-classes 10"
    assert read_foreign(file, num_classes=10).spec.num_classes == 10
    assert read_foreign(file, num_classes=9).spec.num_classes == 9


@pytest.mark.parametrize(("flags", "asked"), [({}, 3), (dict(num_classes=7), None)])
def test_numbers_of_classes_that_do_not_fit_are_refused(tmp_path, flags, asked):
    file = saved(tmp_path, checkpoint(dit_weights(), model="DiT-Ti/4", **flags))
    with pytest.raises(UserError, match=f"{asked or 7}.*6 rows; expected 5 classes and a null"):
        read_foreign(file, num_classes=asked)


@pytest.mark.parametrize(
    ("flags", "size"), [(dict(image_size=64), 64), (dict(resolution=32), 32), ({}, 128)]
)
def test_the_image_size_is_that_of_the_flags(tmp_path, flags, size):
    file = saved(tmp_path, checkpoint(dit_weights(), model="DiT-Ti/4", **flags))
    assert read_foreign(file).config("identity").image_size == size


# -- where the tensors are -------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_prefixes_of_all_names_are_dropped(tmp_path, prefix):
    named = {prefix + name: value for name, value in dit_weights().items()}
    found = read_foreign(saved(tmp_path, {"ema": named}))
    assert same_tensors(found.state_dict, dit_weights())
    assert f"names without `{prefix}`" in found.notes[1]


@pytest.mark.parametrize(
    "keys",
    ["ema", "ema_model", "model_ema", "model", "state_dict", "net", "module", "state_dict.ema"],
)
def test_weights_are_found_under_their_keys(tmp_path, keys):
    content = dit_weights()
    for key in reversed(keys.split(".")):
        content = {key: content, "epoch": 3, "opt": {"state": {0: {"exp_avg": torch.ones(1)}}}}
    found = read_foreign(saved(tmp_path, content))
    assert same_tensors(found.state_dict, dit_weights())
    assert f"the weights under `{keys}`" in found.notes[1]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("average", ["ema", "ema_model", "model_ema"])
def test_averages_come_before_the_last_weights(tmp_path, average, zipped):
    ema = {name: tensor + 1 for name, tensor in dit_weights().items()}
    content = {**checkpoint(dit_weights(), model="DiT-Ti/4"), average: ema}
    if average != "ema":
        del content["ema"]
    file = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    assert same_tensors(read_foreign(file).state_dict, ema)


def test_averages_come_first_in_one_dictionary_too(tmp_path):
    ema = {name: tensor + 1 for name, tensor in dit_weights().items()}
    content = {f"model.{name}": tensor for name, tensor in dit_weights().items()}
    content |= {f"ema.{name}": tensor for name, tensor in ema.items()}
    found = read_foreign(saved(tmp_path, {"state_dict": content}))
    assert same_tensors(found.state_dict, ema)
    assert "without model.pos_embed" in found.notes[1]


def test_safetensors_of_other_programs_are_read(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(repa_weights(), file)
    found = read_foreign(file)
    assert found.format == "repa"
    assert found.state_dict[TABLE].equal(dit_weights(learn_sigma=False)[TABLE])


# -- what is refused -------------------------------------------------------------------------------


def test_missing_and_odd_tensors_are_named(tmp_path):
    weights = dit_weights()
    bias, qkv, patches = (
        "blocks.1.mlp.fc2.bias",
        "blocks.0.attn.qkv.weight",
        "x_embedder.proj.weight",
    )
    in_itself: dict[str, object] = {}
    in_itself["model"] = in_itself
    last_block = [name for name in weights if name.startswith("blocks.1.")]
    for content, message in [
        (without(weights, bias), f"no {bias} among"),
        (without(weights, "pos_embed"), "no pos_embed among"),
        ({**weights, "extra.weight": torch.ones(1)}, "unknown extra.weight"),
        ({**weights, bias: torch.ones(7)}, rf"{bias} is \[7\] where DiT-Ti/4 has \[64\]"),
        ({**weights, patches: torch.ones(64, 48)}, f"{patches} with 2 axes instead of 4"),
        (without(weights, *last_block), "1 blocks, width 64"),
        (without(weights, qkv), "1 blocks, width 64"),
        ([1, 2, 3], "no named tensors"),
        ({"model": 3}, "no named tensors, only model"),
        ({}, "no named tensors"),
        ({"a.weight": torch.ones(1)}, "tensors such as a.weight"),
        (in_itself, "no named tensors, only model"),
    ]:
        with pytest.raises(UserError, match=f"file.pt.*{message}"):
            read_foreign(saved(tmp_path, content), "dit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to(torch.int8), " is int8; expected floating-point weights"),
        (lambda tensor: tensor.to(torch.int64), " is int64"),
        (lambda tensor: tensor.to_sparse(), " is sparse"),
        (lambda tensor: tensor.to("meta"), " is without values"),
        (lambda tensor: tensor / 0, "values that are NaN or infinite"),
        (lambda tensor: torch.where(tensor == tensor.max(), torch.nan, tensor), "has 1 values"),
    ],
)
@pytest.mark.parametrize("format", ["dit", "sit"])
def test_quantized_and_infinite_weights_are_refused_by_name(tmp_path, change, message, format):
    weights = dit_weights()
    name = "blocks.1.mlp.fc1.weight"
    file = saved(tmp_path, {**weights, name: change(weights[name])})
    with pytest.raises(UserError, match=re.escape(f"{name} in {file}") + f".*{message}"):
        read_foreign(file, format)


def test_tensors_that_share_memory_are_written(tmp_path):
    weights = dit_weights()
    weights["blocks.1.mlp.fc1.bias"] = weights["blocks.0.mlp.fc1.bias"]
    found = read_foreign(saved(tmp_path, weights), "dit")
    write_foreign(found, tmp_path / "new.safetensors", "identity")
    assert same_tensors(load_file(tmp_path / "new.safetensors"), weights)


def test_float8_weights_are_read(tmp_path):
    weights = dit_weights()
    name = "blocks.1.mlp.fc1.weight"
    stored = weights[name].to(torch.float8_e4m3fn)
    found = read_foreign(saved(tmp_path, {**weights, name: stored}), "dit")
    assert torch.equal(found.state_dict[name], stored.float())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blocks.0.attn.q_norm.weight", "qk-norm"),
        ("blocks.0.attn.qkv.lora_A.weight", "a LoRA"),
        ("y_embedder.y_proj.fc1.weight", "a PixArt"),
    ],
)
def test_relatives_of_a_dit_are_named(tmp_path, name, kind):
    file = saved(tmp_path, {"ema": {**dit_weights(), name: torch.ones(1)}})
    with pytest.raises(UserError, match=f"{file} is .*{kind}"):
        read_foreign(file)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["input_blocks.0.0.weight", "time_embed.0.weight"], "a U-Net of ADM"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a U-Net of ADM or Stable Diffusion"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "an autoencoder"),
        (["unet.enc.64x64_conv.weight"], "a U-Net of EDM or EDM2"),
        (["transformer_blocks.0.norm1.emb.class_embedder.x"], "diffusers' DiTTransformer2DModel"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a U-Net in diffusers' names"),
        (["joint_blocks.0.x_block.attn.qkv.weight"], "an MMDiT"),
        (["cls_token", "patch_embed.proj.weight"], "a vision transformer"),
    ],
)
def test_other_networks_are_named(tmp_path, names, kind):
    file = saved(tmp_path, {"state_dict": {name: torch.ones(1) for name in names}})
    with pytest.raises(UserError, match=f"{file} is {kind}"):
        read_foreign(file)


def test_the_state_of_an_optimizer_is_named(tmp_path):
    network = torch.nn.Linear(2, 2)
    file = saved(tmp_path, torch.optim.AdamW(network.parameters()).state_dict())
    with pytest.raises(UserError, match=f"{file} is the state of an optimizer"):
        read_foreign(file)
