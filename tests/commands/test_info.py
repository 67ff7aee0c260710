"""`dit info`: what a path is, and whether its files are as they were written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dit.cli import main
from dit.commands.encode import encode
from dit.commands.info import info, table
from dit.commands.info.model import card_rows, list_classes
from dit.commands.train_vae.networks import create_network, save
from dit.config import EncodeConfig, VaeConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import BUNDLED, WEIGHTS
from dit.encoders.psnr import describe_psnr
from dit.errors import UserError
from dit.models.registry import count_parameters, create_model
from dit.runs import posthoc_ema as posthoc
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import find_weights
from dit.runs.weights import read_weights
from dit.utils.files import sha256

pytestmark = pytest.mark.usefixtures("small_networks")


def rows(text: str) -> dict[str, str]:
    """Return the table as a mapping; wrapped lines are joined."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            name, value = line.split("  ", 1)
            found[name] = value.strip()
        else:
            found[name] += " " + line.strip()
    return found


def run_info(path: Path, capsys, code: int) -> tuple[dict[str, str], str]:
    """Run the command; return its table and what it wrote to stderr."""
    assert main(["info", str(path)]) == code
    printed = capsys.readouterr()
    return rows(printed.out), printed.err


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


# -- networks --------------------------------------------------------------------------------------


def test_run(make_run, capsys):
    home = make_run(lr=0.01)
    log = '{"step": 2, "loss": 0.5}\n{"step": 3, "loss": 0.25}\n{"step": 4, "lo'
    (home / "metrics.jsonl").write_text(log)
    shown, _ = run_info(home, capsys, 0)
    shape = dict(input_size=8, in_channels=3, num_classes=10, learn_sigma=False)
    expected = {
        "model": "DiT-Ti/4",
        "parameters": f"{count_parameters(create_model('DiT-Ti/4', **shape)):,}",
        "latents": "3 x 8 x 8",
        "images": "8x8 pixels",
        "class names": "0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        "autoencoder": "identity",
        "EMA decay": "0.999",
        "trained": "3 steps logged, of 560 steps",
        "last loss": "0.2500",
    }
    assert expected.items() <= shown.items()
    assert shown["process"].startswith("flow matching")
    assert shown["step-0000003"].endswith("1 file, checksums verified")


@pytest.mark.parametrize(
    ("settings", "network"),
    [
        (dict(model="UNet-S"), "U-Net of 3 levels"),
        (dict(model="Classifier-Ti/4", label_dropout=0), "classifier, 4 tokens of 4 x 4 latents"),
    ],
)
def test_every_network_is_named(make_run, settings, network):
    shown = rows(info(make_run(**settings)))
    assert shown["network"] == network
    assert (shown["objective"] == "class of noised latents") == network.startswith("classifier")


@pytest.mark.parametrize(("name", "shown"), [("adamw", "AdamW"), ("muon", "Muon and AdamW")])
def test_the_optimizer_is_named(make_run, name, shown):
    assert rows(info(make_run(optimizer=name)))["optimizer"].startswith(f"{shown}, lr")


def test_levers_are_named_where_they_are_on(make_run):
    shown = rows(info(make_run(route=0.5, cosine=1.0)))
    assert shown["levers"].startswith("cosine of velocities, weight 1; 50% of the tokens skip")
    assert "levers" not in rows(info(make_run("plain")))


def test_checkpoint_and_file_have_the_same_rows(tiny_run: Path):
    checkpoint = next(tiny_run.glob("checkpoints/*"))
    by_folder, by_file = rows(info(checkpoint)), rows(info(next(checkpoint.glob("ema-*"))))
    assert by_file["step"] == "3"
    assert by_file.pop("file") == "checksum verified"
    assert by_folder.pop("files").endswith("checksums verified")
    del by_folder["checkpoint"], by_file["weights"]
    assert by_folder == by_file


def test_file_of_another_program(tmp_path: Path):
    network = create_model("DiT-Ti/4", input_size=8, in_channels=4, num_classes=5, learn_sigma=True)
    torch.save(network.state_dict(), tmp_path / "DiT.pt")
    shown = rows(info(tmp_path / "DiT.pt"))
    assert shown["format"] == "unknown: nothing in it tells a DiT from a SiT"
    assert (shown["model"], shown["classes"], shown["learned variance"]) == ("DiT-Ti/4", "5", "yes")
    assert shown["stored as"] == "float32"


def test_bundled_first_stage():
    folder = BUNDLED["digits"]
    shown = rows(info(folder))
    config = json.loads((folder / "config.json").read_text())
    assert (shown["kind"], shown["latent channels"]) == ("KL (AutoencoderKL)", "4")
    assert shown["factor"].startswith("4 pixels")
    assert shown["latents scaled by"].startswith(f"mean {config['latents_mean'][0]:.3g} ")
    assert shown["weights"] == f"SHA-256 {sha256(folder / WEIGHTS)}"


def test_trained_first_stage(tmp_path: Path):
    config = VaeConfig(
        out=tmp_path, kind="vq", channels=(8, 8), latent_channels=2, codebook_size=5
    ).resolved()
    save(create_network(config), tmp_path, torch.tensor([0.25, 0.5]), torch.tensor([2.0, 3.0]))
    scores = {"PSNR": 23.456, "rFD(inception)": "not available"}
    (tmp_path / "report.json").write_text(json.dumps({"held_out": 1200, "scores": scores}))
    expected = {
        "kind": "VQ (VQModel, 5 entries)",
        "latent channels": "2",
        "latents scaled by": "mean 0.25 0.5, deviation 2 3",
        "held out": "1,200 images",
        "PSNR": "23.46",
        "quality": f"PSNR {describe_psnr(23.456)}",
        "rFD(inception)": "not available",
    }
    assert expected.items() <= rows(info(tmp_path)).items()
    (tmp_path / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded"):
        info(tmp_path)


def test_classes_have_ids_names_and_counts():
    names = ["owl", "1", *(f"bird {i}" for i in range(2, 1000))]
    text = list_classes(names, [1, 2500, *range(998)])
    assert text.startswith("0 owl (1 image), 1 (2,500), 2 bird 2 (0), 3 bird 3 (1), ")
    assert text.endswith(", 19 bird 19 (17), … (980 more)")
    assert list_classes(names[:3], None) == "0 owl, 1, 2 bird 2"


def test_captions_are_no_classes(make_run):
    card = ModelCard.read(make_run())
    spec = replace(card.network, conditioning="text", text_width=8, num_classes=30)
    names = ["a seven", "a one"]
    shown = dict(card_rows(replace(card, network=spec, classes=names, text_encoder_sha256="5b")))
    assert shown["captions"] == "a seven, a one, … (28 more)"
    assert "caption dropout" in shown
    assert not {"classes", "class names", "label dropout"} & {*shown}


def test_other_paths_are_refused(tmp_path: Path, tiny_run: Path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(next(tiny_run.glob("checkpoints/*/ema-*")).read_bytes()[:100])
    for path, message in (
        (tmp_path / "nowhere", "nothing at"),
        (tmp_path, "neither config.json, meta.json nor latents"),
        (cut, "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            info(path)


def test_table_wraps():
    text = table([("short", "a"), ("a longer name", "word " * 40)])
    assert max(len(line) for line in text.splitlines()) <= 100
    assert text.splitlines()[0] == "short          a"
    assert rows(text)["a longer name"].count("word") == 40


# -- damage ----------------------------------------------------------------------------------------


def test_damaged_weights_are_named(make_run, capsys):
    run = make_run()
    weights = next(run.rglob("ema-*.safetensors"))
    damage(weights)
    for path, row, name in (
        (run, "step-0000003", "step-0000003"),
        (weights.parent, "files", "step-0000003"),
        (weights, "file", weights.name),
    ):
        shown, error = run_info(path, capsys, 2)
        assert shown[row].startswith(f"DAMAGED: {weights} has sha256")
        assert f"error: damaged in {path}: {name}; " in error


@pytest.mark.parametrize("missing", [False, True])
def test_damaged_snapshots_are_named(missing, make_run, capsys):
    run = make_run()
    weights = read_weights(find_weights(run))
    for step in (1, 2, 3):
        posthoc.write_snapshot(run, weights.state_dict, weights.card, 0.1, step)
    (run / posthoc.FOLDER / "length-0.1-step-0000003 (copy).safetensors").write_bytes(b"foreign")
    posthoc.drop_after(run, 2)
    run_info(run, capsys, 0)
    first = min(snapshot.file for snapshot in posthoc.find_snapshots(run))
    if missing:
        first.unlink()
    else:
        damage(first)
    shown, error = run_info(run, capsys, 2)
    assert shown[first.name].startswith(f"DAMAGED: {first} has ")
    assert f"damaged in {run}: {first.name}; " in error


def test_an_incomplete_checkpoint_is_named(make_run, capsys):
    run = make_run()
    (run / "checkpoints" / "step-0000004").mkdir()
    (run / "checkpoints" / ".step-0000005").mkdir()  # as a kill leaves it
    shown, error = run_info(run, capsys, 2)
    assert "step-0000004 has no meta.json and is not counted" in shown["step-0000004"]
    assert "step-0000005" not in error + " ".join(shown)


def test_the_newest_card_that_reads_is_shown(make_run, capsys):
    run = make_run()
    (run / "config.json").unlink()
    first = run / "checkpoints" / "step-0000003"
    last = shutil.copytree(first, run / "checkpoints" / "step-0000004")
    first_size = find_weights(first).stat().st_size
    next(last.glob("ema-*")).write_bytes(b"damaged")
    shown, error = run_info(run, capsys, 2)
    assert shown["model"] == "DiT-Ti/4"
    assert shown["step-0000003"].endswith("checksums verified")
    assert f"damaged in {run}: step-0000004, config.json; " in error
    assert f"has 7 bytes; expected {first_size:,}, as" in shown["step-0000004"]
    assert "a run continues once its newest checkpoint is intact" in error

    next(first.glob("ema-*")).write_bytes(b"damaged")
    shown, _ = run_info(run, capsys, 2)
    assert [*shown] == ["run", "step-0000003", "step-0000004", "config.json"]
    assert all(text.startswith("DAMAGED: ") for name, text in shown.items() if name != "run")


def test_a_damaged_record_of_snapshots_is_a_row(make_run, capsys):
    run = make_run()
    record = run / posthoc.RECORD
    record.parent.mkdir()
    record.write_text("{")
    shown, _ = run_info(run, capsys, 2)
    assert shown["ema/meta.json"].startswith(f"DAMAGED: {record} is missing or damaged")
    assert shown["step-0000003"].endswith("checksums verified")


def test_incomplete_checkpoints_without_a_run_are_named(tmp_path, capsys):
    (tmp_path / "checkpoints" / "step-0000004").mkdir(parents=True)
    shown, _ = run_info(tmp_path, capsys, 2)
    assert "step-0000004 has no meta.json and is not counted" in shown["step-0000004"]


@pytest.mark.parametrize(
    ("key", "value", "code"), [("seed", 7, 2), ("ema", 0.5, 2), ("lr", 0.5, 0), (None, 0, 2)]
)
def test_settings_are_compared_with_those_of_the_checkpoint(make_run, key, value, code, capsys):
    run = make_run()
    card = json.loads((run / "config.json").read_text())
    old = card["config"].get(key)
    card["config"][key] = value
    (run / "config.json").write_text(json.dumps(card) if key else "{")
    shown, _ = run_info(run, capsys, code)
    assert (f"--{key} {old} before, --{key} {value} now" if key else "is missing") in shown[
        "config.json"
    ]
    assert f"--resume {run}" in shown["config.json"] or code == 0
    assert shown["model"] == "DiT-Ti/4"  # a lost config.json is replaced by the checkpoint's


@pytest.mark.parametrize("name", ["checkpoints/step-0000003", "best"])
def test_a_checkpoint_can_not_be_resumed(name, make_run, capsys):
    run = make_run()
    (run / "best").symlink_to("checkpoints/step-0000003")
    assert main(["train", "--resume", str(run / name)]) == 2
    assert f"a checkpoint of the run {run}; expected " in capsys.readouterr().err


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    out = tmp_path_factory.mktemp("latents")
    settings = dict(data="digits", vae="identity", image_size=8, shard_size=600)
    return encode(EncodeConfig(out=out, **settings), Ranks())


def test_latents(latents, capsys):
    shown, error = run_info(latents, capsys, 0)
    assert error == ""  # no bar for a moment
    counts = (
        "0 (178 images), 1 (182), 2 (177), 3 (183), 4 (181), 5 (182), 6 (181), 7 (179), 8 (174)"
    )
    assert shown["class names"] == f"{counts}, 9 (180)"
    assert (shown["latents of each"], shown["autoencoder"]) == ("3 x 8 x 8", "identity")
    files = "3 shards with 1,797 images, and their labels, checksums verified"
    assert shown["files"] == files


def test_damaged_labels_cannot_be_skipped(latents, tmp_path, capsys):
    out = shutil.copytree(latents, tmp_path / "out")
    damage(out / "labels.npy")
    _, error = run_info(out, capsys, 2)
    assert f"damaged in {out}: labels.npy; " in error
    assert "run dit encode again" in error
    assert "--skip-damaged" not in error


def test_damaged_latents_are_named(latents, tmp_path, capsys):
    out = shutil.copytree(latents, tmp_path / "out")
    damage(out / "shard-00001.npy")
    (out / "shard-00002.npy").unlink()
    shown, error = run_info(out, capsys, 2)
    assert shown["shard-00001.npy"].endswith("; 600 images")
    assert shown["shard-00002.npy"] == "DAMAGED: missing; 597 images"
    assert f"damaged in {out}: shard-00001.npy, shard-00002.npy; " in error
    assert "--skip-damaged" in error
    (out / "index.json").unlink()
    assert "are unfinished" in run_info(out, capsys, 2)[1]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.json", b'{"a": 1}', "a JSON file"),
        ("a", b"", "empty"),
        ("a.png", b"\x89PNG", "an image"),
        ("a.npz", b"PK\3\4", "a .npz file"),
        ("a", b"text", "a file of another kind"),
    ],
)
def test_a_file_of_no_weights_is_described(tmp_path, name, content, kind):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        info(file)
    assert str(error.value).startswith(f"{file} is {kind}; expected a file of weights")


def test_all_classes_of_latents_are_listed(tmp_path, capsys):
    out = tmp_path / "latents"
    config = EncodeConfig(data="digits", out=out, vae="identity", image_size=8)
    encode(config, Ranks())
    capsys.readouterr()
    assert main(["info", str(out), "--classes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[0].split() == ["id", "name", "images"]
    assert lines[4].split() == ["3", "3", "183"]

    encode(replace(config, out=tmp_path / "plain", num_classes=0), Ranks())
    assert main(["info", str(tmp_path / "plain"), "--classes"]) == 2
    assert "which has no classes" in capsys.readouterr().err
