"""Damaged files and impossible numbers: one clear message each, never a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit.cli import main, parse
from dit.config import EvalConfig, SampleConfig, TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import (
    checkpoints,
    checksum_entry,
    find_weights,
    latest_checkpoint,
    verify_checkpoint,
)
from dit.runs.weights import WEIGHTS, read_weights
from dit.sampling.classes import class_ids
from dit.sampling.load import load_run
from dit.utils.typed_json import WrongJson

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", '{"step": 1, "files": 3}'])
def test_damaged_meta_names_the_file(make_run, text):
    checkpoint = latest_checkpoint(make_run())
    (checkpoint / "meta.json").write_text(text)
    with pytest.raises(UserError, match=r"meta\.json is missing or damaged"):
        verify_checkpoint(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"config": {}, "network": {}}'])
def test_damaged_configuration_names_the_file(make_run, text, capsys):
    run = make_run()
    (run / "config.json").write_text(text)
    assert main(["info", str(run)]) == 2
    assert "config.json is missing or damaged" in " ".join(capsys.readouterr().out.split())
    assert parse(TrainConfig, ["--resume", str(run)], "train.py").image_size == 8
    latest_checkpoint(run).rename(run / "checkpoints" / "step-0000004")
    next(latest_checkpoint(run).glob(WEIGHTS)).write_bytes(b"")
    assert main(["train", "--resume", str(run)]) == 2
    assert "config.json is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["name", "meta.json", "header"])
def test_a_checkpoint_is_of_one_step(make_run, change):
    checkpoint, weights = latest_checkpoint(make_run()), find_weights(make_run("other", step=4))
    meta = json.loads((checkpoint / "meta.json").read_text())
    if change == "header":
        shutil.copy(weights, checkpoint)
        meta["files"] = {weights.name: checksum_entry(weights)}
    meta["step"] = 4 if change == "meta.json" else 3
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    if change == "name":
        checkpoint = checkpoint.rename(checkpoint.with_name("step-0000004"))
    steps = r"is of step \d by its name, \d by meta.json, \d by ema-0.999.safetensors"
    with pytest.raises(UserError, match=steps):
        verify_checkpoint(checkpoint)


@pytest.mark.parametrize("header", ["{", "{}", '{"step": "many"}'])
def test_a_damaged_header_of_weights_is_refused(make_run, header):
    file = find_weights(make_run())
    save_file(load_file(file), file, {"dit": header})
    with pytest.raises(UserError, match=rf"the header of {file} is damaged"):
        read_weights(file)


def test_weights_that_lack_a_tensor_are_refused(make_run, tmp_path):
    weights = read_weights(find_weights(make_run()))
    file, missing = tmp_path / "w.safetensors", "final_layer.linear.weight"
    tensors = {name: v for name, v in weights.state_dict.items() if name != missing}
    save_file(tensors, file, {"dit": json.dumps({**weights.card.to_json(), "step": 1})})
    with pytest.raises(UserError, match=r"final_layer\.linear\.weight"):
        load_run(file, Ranks().device)


def test_weights_can_be_read_by_others(make_run):
    file = find_weights(make_run())
    plain = file.with_name("plain")
    plain.write_text("")
    assert file.stat().st_mode == plain.stat().st_mode


def test_checkpoints_are_ordered_by_number(tmp_path):
    for step in (9_999_999, 10_000_000, 5):
        folder = tmp_path / "checkpoints" / f"step-{step:07d}"
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text("{}")
    assert [int(c.name[5:]) for c in checkpoints(tmp_path)] == [5, 9_999_999, 10_000_000]


def test_only_trained_classes_are_sampled_unless_asked_for(tiny_run):
    card = read_weights(find_weights(tiny_run)).card
    roomy = ModelCard(**{**vars(card), "classes": card.classes[:3]})
    assert class_ids(None, roomy)[0] == [0, 1, 2]
    assert class_ids(("7",), roomy)[0] == [7]
    assert roomy.class_name(7) == "7"
    with pytest.raises(UserError, match="--classes"):
        class_ids(("²",), roomy)


def test_our_own_weights_are_not_converted(tiny_run, tmp_path, capsys):
    file = next(latest_checkpoint(tiny_run).glob(WEIGHTS))
    assert main(["convert", str(file), str(tmp_path / "out.safetensors")]) == 2
    assert f"dit sample --run {file}" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_preset_does_not_go_with_a_run(tiny_run):
    with pytest.raises(UserError, match="--preset digits with --resume"):
        parse(TrainConfig, ["--resume", str(tiny_run), "--preset", "digits"], "train.py")


@pytest.mark.parametrize(
    "name", ["lr", "clip", "weight_decay", "time_shift", "epochs", "min_snr_gamma"]
)
def test_infinity_is_no_setting(name):
    with pytest.raises(UserError, match="inf"):
        TrainConfig(**{name: float("inf")})


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (TrainConfig, dict(seed=2**70)),
        (TrainConfig, dict(seed=-1)),
        (TrainConfig, dict(num_classes=10**11)),
        (SampleConfig, dict(run=Path("x"), seed=2**64)),
        (EvalConfig, dict(run=Path("x"), num_samples=-1)),
        (EvalConfig, dict(run=Path("x"), num_samples=0)),
    ],
)
def test_impossible_counts_are_refused(kind, wrong):
    flag = [*wrong][-1].replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag}"):
        kind(**wrong)


# -- what meta.json lists --------------------------------------------------------------------------


def relist(checkpoint: Path, change: Callable[[dict], object]) -> None:
    """Change the list of files in a checkpoint's meta.json."""
    meta = json.loads((checkpoint / "meta.json").read_text())
    change(meta["files"])
    (checkpoint / "meta.json").write_text(json.dumps(meta))


def test_an_emptied_list_of_checksums_does_not_verify(make_run, capsys):
    run = make_run()
    checkpoint = latest_checkpoint(run)
    relist(checkpoint, dict.clear)
    with pytest.raises(UserError, match=r"does not list ema-0\.999\.safetensors; expected the"):
        find_weights(run)
    assert main(["info", str(run)]) == 2
    assert "DAMAGED" in capsys.readouterr().out


STATE = ("model-00001-of-00001.safetensors", "model.safetensors.index.json")


@pytest.mark.parametrize("name", STATE)
def test_a_state_that_is_not_listed_is_refused(make_run, name):
    checkpoint = latest_checkpoint(make_run())
    (checkpoint / "state").mkdir()
    listed = {}
    for file in STATE:
        (checkpoint / "state" / file).write_text("")
        listed[f"state/{file}"] = checksum_entry(checkpoint / "state" / file)
    relist(checkpoint, lambda files: files.update(listed))
    (checkpoint / "state" / "Thumbs.db").touch()
    (checkpoint / "state" / "@eaDir").mkdir()
    verify_checkpoint(checkpoint)
    relist(checkpoint, lambda files: files.pop(f"state/{name}"))
    with pytest.raises(UserError, match=rf"does not list state/{name}"):
        verify_checkpoint(checkpoint)


@pytest.mark.parametrize("entry", [3, {}, {"bytes": "3", "sha256": "0"}, {"bytes": 3}])
def test_a_wrong_entry_of_meta_is_named(make_run, entry):
    checkpoint = latest_checkpoint(make_run())
    relist(checkpoint, lambda files: files.update({"x": entry}))
    with pytest.raises(UserError, match=r"meta\.json is missing or damaged \(.*files\.x"):
        verify_checkpoint(checkpoint)


def test_advice_names_the_checkpoint_before_a_damaged_one_if_there_is_one(make_run):
    checkpoint = latest_checkpoint(make_run())
    (checkpoint / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"again: there is no checkpoint before it"):
        verify_checkpoint(checkpoint)
    shutil.copytree(checkpoint, checkpoint.with_name("step-0000002"))
    with pytest.raises(UserError, match=r"to go on from step-0000002, the checkpoint before it"):
        verify_checkpoint(checkpoint)


# -- weights ---------------------------------------------------------------------------------------

ODD = "final_layer.linear.weight"


def with_odd_tensor(file: Path, change: Callable[[Tensor], Tensor]) -> Path:
    """Copy a file of weights outside of its run, with one tensor changed."""
    weights = read_weights(file)
    tensors = {**weights.state_dict, ODD: change(weights.state_dict[ODD])}
    other = file.parents[2] / "odd.safetensors"
    save_file(tensors, other, {"dit": json.dumps({**weights.card.to_json(), "step": 3})})
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.to(torch.int8),
            rf"{ODD} in .*odd\.safetensors is int8; expected weights",
        ),
        (lambda t: t.bool(), rf"{ODD} in .*odd\.safetensors is bool"),
        (lambda t: t / 0, rf"{ODD} in .*odd\.safetensors has NaN or infinite values"),
        (lambda t: t[:1].clone(), rf"odd\.safetensors does not fit .*{ODD}"),
    ],
)
def test_odd_weights_are_refused_by_name(make_run, change, message):
    file = with_odd_tensor(find_weights(make_run()), change)
    with pytest.raises(UserError, match=message):
        load_run(file, Ranks().device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(make_run, dtype):
    file = with_odd_tensor(find_weights(make_run()), lambda t: t.to(dtype))
    assert load_run(file, Ranks().device).card.network.num_classes == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_classes", -3), ("input_size", 0), ("in_channels", 0), ("input_size", [8, -8])],
)
def test_impossible_counts_in_a_card_are_refused(make_run, name, value, capsys):
    run = make_run()
    card = json.loads((run / "config.json").read_text())
    card["network"][name] = value
    (run / "config.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=rf"config\.json .*\({name} .* in network, not [01] to"):
        ModelCard.read(run)


def test_a_statistic_for_each_channel(make_run):
    card = json.loads((make_run() / "config.json").read_text())
    card |= {"latent_mean": [0.0], "latent_std": [1.0]}
    with pytest.raises(WrongJson, match="latent_mean of length 1, not a value for each of 3"):
        ModelCard.from_json(card)
