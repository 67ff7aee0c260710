"""`dit edit`: which flags fit, what it writes, and what it does not overwrite."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit.cli import main, parse
from dit.commands.edit import column_headings, row_labels
from dit.config import EditConfig
from dit.config.command_line import flag_words
from dit.errors import UserError
from dit.sampling.image_grid import sample_grid
from dit.sampling.load import load_run
from dit.sampling.pipeline import build_pipeline

QUICK = "--steps 3 --precision fp32 --cfg-scale 2"

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def picture(tmp_path) -> Path:
    file = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def mask(tmp_path) -> Path:
    file = tmp_path / "mask.png"
    Image.new("L", (8, 8), 255).save(file)
    return file


def edit(flags: str) -> int:
    return main(["edit", *shlex.split(flags)])


def pixels(folder: Path) -> torch.Tensor:
    """The images of a folder, uint8 [N, 3, H, W]."""
    files = sorted(file for file in folder.glob("*.png") if file.stem.isdigit())
    images = np.stack([np.array(Image.open(file)) for file in files])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_a_mask_that_is_all_white_gives_the_grid_of_samples(tiny_run, picture, mask, tmp_path):
    out = tmp_path / "out"
    flags = f"--run {tiny_run} --inpaint {picture} --mask {mask} --classes 3 1 --per-class 2"
    assert edit(f"{flags} {QUICK} --out {out}") == 0
    config = parse(EditConfig, shlex.split(f"{flags} {QUICK}"), "dit edit")
    pipeline = build_pipeline(load_run(tiny_run, torch.device("cpu")), config, [3, 1])
    assert torch.equal(pixels(out), sample_grid(pipeline, 2)[0])

    with Image.open(out / "grid.png") as grid:
        # the image, what is kept of it, and two results, a row for each class
        assert grid.width > 4 * 64
        assert 2 * 64 < grid.height < 3 * 64


def test_the_given_image_is_drawn_once(make_run, tmp_path):
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8), (200, 30, 90)).save(plain)
    flags = f"--run {make_run()} --variations {plain} --strength 1 --classes 3 1 --per-class 2"
    assert edit(f"{flags} {QUICK} --out {tmp_path}/out") == 0
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        found = (np.array(grid) == (200, 30, 90)).all(-1)
    # given and coded, which are the same for pixels
    assert found.sum() == 2 * 64 * 64


@pytest.mark.parametrize(
    ("flags", "labels", "headings"),
    [
        (
            "--variations a.png --strength 0.3 --classes 3 1",
            ["3, strength 0.3", "1, strength 0.3"],
            ["seed 0", "", ""],
        ),
        (
            "--variations a.png --classes 3 --seed 7",
            ["3, strength 0.5"],
            ["seed 7\nimage 0", "seed 7\nimage 1", "seed 7\nimage 2"],
        ),
        ("--inpaint a.png --mask b.png --classes 3 1", ["3", "1"], ["seed 0", "", ""]),
        (
            "--interpolate --classes 3 1 --per-class 2",
            ["seed 0, image 0", "seed 0, image 1"],
            ["0%\n3", "50%", "100%\n1"],
        ),
        (
            "--interpolate --classes 3 --seeds 4 9 --per-class 1",
            ["seeds 4 to 9, image 0"],
            ["0%\n3", "50%", "100%\n3"],
        ),
    ],
)
def test_the_axes_of_a_grid_say_what_varies(tiny_run, flags, labels, headings):
    config = parse(EditConfig, shlex.split(f"--run {tiny_run} {flags} {QUICK}"), "dit edit")
    classes = [int(name) for name in config.classes]
    pipeline = build_pipeline(load_run(tiny_run, torch.device("cpu")), config, classes)
    shown = row_labels(pipeline, config)
    assert [label.replace("\N{NO-BREAK SPACE}", " ") for label in shown] == labels
    assert column_headings(pipeline, config, 3) == headings


def test_the_axes_of_a_run_without_classes(make_run):
    run = make_run(num_classes=0)
    for flags, labels, last in (
        ("--variations a.png", ["strength 0.5"], "seed 0\nimage 1"),
        ("--inpaint a.png --mask b.png", None, "seed 0\nimage 1"),
        ("--interpolate --per-class 1", ["seeds 0 to 1, image\N{NO-BREAK SPACE}0"], "100%"),
    ):
        config = parse(EditConfig, shlex.split(f"--run {run} {flags} --steps 3"), "dit edit")
        pipeline = build_pipeline(load_run(run, torch.device("cpu")), config)
        assert row_labels(pipeline, config) == labels
        assert column_headings(pipeline, config, 2)[-1] == last


def test_fewer_images_replace_those_of_an_earlier_edit(tiny_run, picture, tmp_path):
    flags = f"--run {tiny_run} --variations {picture} --classes 3 {QUICK} --out {tmp_path}/out"
    for count in (3, 1):
        assert edit(f"{flags} --per-class {count}") == 0
        assert len(pixels(tmp_path / "out")) == count


def test_a_folder_of_something_else_is_left_alone(tiny_run, picture, tmp_path, capsys):
    assert edit(f"--run {tiny_run} --variations {picture} {QUICK} --out {tmp_path}") == 2
    assert "holds picture.png and no edit.json" in capsys.readouterr().err


def test_the_same_edit_has_the_same_folder_in_the_run(make_run, picture, capsys):
    run = make_run()
    for strength in (0.2, 0.2, 0.9):
        flags = f"--variations {picture} --strength {strength} --classes 3 --per-class 1"
        assert edit(f"--run {run} {flags} {QUICK}") == 0
    assert len(list((run / "edits").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "no edit; expected one of --inpaint IMAGE, --variations IMAGE and --interpolate"),
        ("--interpolate --variations a.png", "--variations with --interpolate; expected one of"),
        ("--inpaint a.png", "--inpaint a.png without --mask"),
        ("--variations a.png --mask b.png", "--mask b.png with --variations"),
        ("--interpolate --strength 0.2", "--strength 0.2 with --interpolate"),
        ("--variations a.png --strength 1.5", "--strength 1.5; expected a number from 0 to 1"),
        ("--variations a.png --frames 4", "--frames 4 with --variations"),
        ("--interpolate --seeds 1 2 --seed 3", "--seed 3 with --seeds 1 2"),
        ("--interpolate --frames 1", "--frames 1; expected 2 or more"),
        ("--interpolate --classes 1 --prompt a", "--prompt 'a' with --classes 1"),
        ("--interpolate --prompt a -x", "--prompt a -x; expected values without a dash, or a flag"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError) as error:
        parse(EditConfig, ["--run", "r", *shlex.split(flags)], "dit edit")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "flags",
    [
        "--run r --interpolate --seeds 3 4 --classes 'a b'",
        "--run 'my run' --inpaint 'a b.png' --mask m.png --no-paste --cfg-scale 1.1234567890123",
        "--run r --variations a.png --strength 0.1 --image-size 8 16 --cfg-interval 0 0.5 "
        "--cfg-scale 2",
        "--run r --interpolate --prompt 'a seven' 'a one' --negative-prompt=-x --cfg-scale 2",
        "--run r --interpolate --prompt a --prompt=-x --prompt='--y z'",
        "--run r --interpolate --classes=-x b --classes='-y z'",
    ],
)
def test_a_configuration_is_typed_as_it_was(flags):
    config = parse(EditConfig, shlex.split(flags), "dit edit")
    assert parse(EditConfig, flag_words(config), "dit edit") == config


def test_a_dash_without_a_name_is_text():
    words = ["--run", "r", "--interpolate", "--prompt", "- b", "-"]
    assert parse(EditConfig, words, "dit edit").prompt == ("- b", "-")
