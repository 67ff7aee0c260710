"""Damaged files and impossible numbers: one clear message each, never a traceback."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

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
    with pytest.raises(UserError, match="missing or damaged"):
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
    assert f"sample.py --run {file}" in capsys.readouterr().err
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
