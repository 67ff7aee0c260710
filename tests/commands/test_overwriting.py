"""No command overwrites what it did not make: all outputs of all commands."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_weights
from helpers.image_data import paint
from helpers.run_pages import fill_run
from PIL import Image

from dit.cli import main
from dit.runs.card import ModelCard
from dit.runs.posthoc_ema import write_snapshot
from dit.utils.files import write_json

pytestmark = pytest.mark.usefixtures("small_networks")

CHEAP = "--steps 2 --precision fp32"
SCORING = "--extractor digits-cnn --bootstrap 0 --no-cache"
FILES = {
    "convert": "convert {tmp}/release.pt {out}.safetensors --vae identity --format dit",
    "ema": "ema {run} --ema-lengths 0.12 --out {out}.safetensors",
    "nll": "nll --run {run} --num-images 2 --steps 2 --out {out}.json",
    "sample": f"sample --run {{run}} {CHEAP} --classes 1 --out {{out}}.png",
    "stats": "stats --data {tmp}/images --extractor digits-cnn --no-cache --out {out}.npz",
}
"""Commands that write one file."""
FOLDERS = {
    "encode": "encode --data {tmp}/images --vae identity --image-size 8 --out {out}",
    "sample": f"sample --run {{run}} {CHEAP} --num-samples 2 --out {{out}}",
    "sweep": f"sweep --run {{run}} {CHEAP} --num-samples 4 --extractor digits-cnn --out {{out}}",
    "train": "train --vae identity --image-size 8 --model DiT-Ti/4 --out {out}",
    "train-classifier": "train-classifier --run {run} --model Classifier-Ti/4 --out {out}",
    "train-vae": "train-vae --image-size 8 --out {out}",
}
"""Commands that fill a folder."""
EVALUATE = "evaluate --samples {tmp}/images --reference {tmp}/images --out {out} " + SCORING
INSIDE = {
    "evaluate report.json": EVALUATE,
    "show forward.png": f"show forward {{run}} {CHEAP} --num-images 1 --out {{out}}",
    "show forward-attention.gif": f"show forward {{run}} {CHEAP} --num-images 1 --out {{out}}",
}
for name in ("report.md", "report.html", "grid.png"):
    INSIDE[f"evaluate {name}"] = EVALUATE


@pytest.fixture
def places(tmp_path, make_run):
    """A run with a log and snapshots, images, and weights of the release, by name."""
    run = fill_run(make_run())
    card = ModelCard.read(run)
    for length in (0.1, 0.2):
        write_snapshot(run, random_weights(card.network), card, length, step=3)
    for number in range(4):
        paint(tmp_path / "images" / f"{number}.png", (8, 8), (number * 60, 9, 99))
    weights = random_weights(card.network)
    torch.save(weights, tmp_path / "release.pt")
    return {"tmp": tmp_path, "run": run, "out": tmp_path / "out"}


def refused(command, places, capsys):
    """Return the one line on stderr of a command that is refused."""
    code = main(command.format(**places).split())
    lines = capsys.readouterr().err.strip().splitlines()
    # a training says first what takes long
    err = "\n".join(line for line in lines if not line.startswith("start: "))
    assert (code, err.count("\n")) == (2, 0), err
    assert err.startswith("error: ")
    return err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- what others made ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("command", FILES)
def test_a_file_of_others_is_refused(command, kind, places, capsys):
    ending = FILES[command].partition("{out}")[2].split()[0]
    out = Path(f"{places['out']}{ending}")
    foreign = places["tmp"] / "foreign"
    foreign.write_text('{"mine": true}')
    if kind == "link":
        out.symlink_to(foreign)
    else:
        shutil.copy(foreign, out)
    before = contents(places["tmp"])
    assert f"{out} " in refused(FILES[command], places, capsys)
    assert contents(places["tmp"]) == before


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_of_others_is_refused(command, places, capsys):
    out = places["out"]
    out.mkdir()
    for name in ("thesis.md", "metrics.jsonl"):
        (out / name).write_text("mine")
    assert f"--out {out} holds metrics.jsonl and no " in refused(FOLDERS[command], places, capsys)
    assert contents(out) == {out / "thesis.md": b"mine", out / "metrics.jsonl": b"mine"}


@pytest.mark.parametrize("case", INSIDE)
def test_files_of_others_in_a_folder_are_refused(case, places, capsys):
    command, name = case.split()
    file = places["out"] / name
    file.parent.mkdir()
    file.write_text("mine")
    message = f"{file} exists, and dit {command} did not write it; expected a new file, or one of"
    assert message in refused(INSIDE[case], places, capsys)
    assert contents(places["out"]) == {file: b"mine"}


def test_a_page_of_others_in_a_run_is_refused(places, capsys):
    page = places["run"] / "report.html"
    page.write_text("<title>My thesis</title>")
    message = f"{page} exists, and dit report did not write it; expected a new file, or one of dit"
    assert message in refused("report {run}", places, capsys)
    assert page.read_text() == "<title>My thesis</title>"


def test_a_file_of_the_run_itself_is_refused(places, capsys):
    config = places["run"] / "config.json"
    weights = next(places["run"].rglob("ema-0*.safetensors"))
    shutil.copy(places["tmp"] / "release.pt", places["tmp"] / "release.safetensors")
    for command in (
        f"nll --run {{run}} --num-images 2 --steps 2 --out {config}",
        f"convert {{tmp}}/release.pt {weights} --vae identity",
        "convert {tmp}/release.safetensors {tmp}/release.safetensors --vae identity",
    ):
        before = contents(places["tmp"])
        assert "did not write it" in refused(command, places, capsys)
        assert contents(places["tmp"]) == before


# -- folders of images -----------------------------------------------------------------------------

AMONG_IMAGES = {
    **{name: FOLDERS[name] for name in ("encode", "sample", "sweep")},
    "a grid": FILES["sample"].replace("{out}", "{out}/grid"),
    "show": INSIDE["show forward.png"].replace("forward", "backward"),
    "evaluate": EVALUATE,
    "train": f"{FOLDERS['train']} --data {{tmp}}/images",
    "train --resume auto": f"{FOLDERS['train']} --data {{tmp}}/images --resume auto",
    "train-vae": f"{FOLDERS['train-vae']} --data {{tmp}}/images",
}


@pytest.mark.parametrize("inside", ["", "deep/new"])
@pytest.mark.parametrize("command", AMONG_IMAGES)
def test_no_pictures_are_written_among_the_images(command, inside, places, make_run, capsys):
    images = places["tmp"] / "images"
    places["run"] = make_run("of-images", data=str(images))
    places["out"] = images / inside
    before = contents(images)
    said = refused(AMONG_IMAGES[command], places, capsys)
    assert f"lies in {images}, a folder of images; expected a folder elsewhere" in said
    assert [*images.iterdir()] == [*before]


def test_a_run_may_lie_in_the_latents_that_it_is_of(places, capsys):
    assert main(FOLDERS["encode"].format(**places).split()) == 0
    train = "train --data {out} --vae identity --image-size 8 --model DiT-Ti/4 --out {out}/run"
    flags = "--steps 1 --batch-size 2 --sample-every 0 --latent-norm vae"
    assert main(f"{train} {flags}".format(**places).split()) == 0, capsys.readouterr().err


# -- what they made themselves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *(FILES[name] for name in ("convert", "nll", "sample", "stats")),
        *(FOLDERS[name] for name in ("encode", "sample")),
        INSIDE["show forward.png"],
        "report {run}",
    ],
)
def test_an_earlier_output_is_replaced_or_continued(command, places, capsys):
    for _ in range(2):
        assert main(command.format(**places).split()) == 0, capsys.readouterr().err


def test_a_report_of_an_earlier_version_is_replaced(places, capsys):
    page = places["run"] / "report.html"
    assert main(["report", str(places["run"])]) == 0
    unsigned = page.read_text().replace("dit report", "")
    page.write_text(unsigned)
    assert main(["report", str(places["run"])]) == 0
    assert '<meta name="generator" content="dit report">' in page.read_text()


def test_an_evaluation_replaces_its_pages(places, capsys):
    out = places["out"]
    write_json(out / "report.json", {"title": "", "scores": {}, "protocol": {}})
    (out / "report.md").write_text("of an earlier version")
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(places["tmp"] / "images" / f"{number}.png")
    assert main(EVALUATE.format(**places).split()) == 0
    assert "dit evaluate" in (out / "report.html").read_text()


def test_a_stopped_training_of_an_autoencoder_starts_again(places, monkeypatch, capsys):
    def stop(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("dit.commands.train_vae.learner.Learner.step", stop)
    for _ in range(2):
        assert main(FOLDERS["train-vae"].format(**places).split()) == 130
    assert {file.name for file in places["out"].iterdir()} == {".lock", "metrics.jsonl"}
