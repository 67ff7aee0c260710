"""Autoencoder and image size of images whose owner names neither."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit.latents import first_stage
from dit.latents.first_stage import (
    SD_VAE,
    FirstStage,
    choose_first_stage,
    choose_patch,
    latent_sides,
    typical_side,
)


def images(root: Path, *sides: tuple[int, int]) -> Path:
    """Write an image of each of these sizes into a class of its own."""
    for number, size in enumerate(sides):
        folder = root / f"class {number}"
        folder.mkdir(parents=True)
        Image.new("RGB", size).save(folder / "an image.png")
    return root


@pytest.mark.parametrize(
    ("side", "gpu", "hub", "expected"),
    [
        (300, False, True, ("tiny", 64)),
        (48, False, True, ("tiny", 64)),
        (47, False, True, ("tiny", 32)),
        (16, True, True, ("tiny", 32)),
        (300, True, True, (SD_VAE, 256)),
        (192, True, True, (SD_VAE, 256)),
        (191, True, True, ("tiny", 128)),
        (300, True, False, ("tiny", 128)),
        (64, True, True, ("tiny", 64)),
    ],
)
def test_both_follow_from_images_and_machine(side, gpu, hub, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(first_stage, "is_available", lambda *names: hub)
    chosen = choose_first_stage(str(images(tmp_path / "set", (side, side + 20))), gpu)
    assert chosen == FirstStage(*expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (dict(vae="identity"), ("identity", 32)),
        (dict(vae="some/autoencoder"), ("some/autoencoder", 256)),
        (dict(image_size=48), ("tiny", 48)),
        (dict(vae="digits", image_size=(16, 24)), ("digits", (16, 24))),
    ],
)
def test_what_is_given_stays_and_decides_the_other(tmp_path, given, expected):
    folder = images(tmp_path / "set", (300, 300))
    assert choose_first_stage(str(folder), False, **given) == FirstStage(*expected)


@pytest.mark.parametrize(("side", "patch"), [(8, 2), (16, 4), (18, 2), (32, 4), (64, 8)])
def test_the_patch_leaves_sixteen_tokens_or_more(side, patch):
    assert choose_patch(side, side) == patch


@pytest.mark.parametrize(
    ("height", "width", "patch"), [(16, 18, 2), (18, 16, 2), (16, 20, 4), (64, 68, 4)]
)
def test_the_patch_divides_both_sides(height, width, patch):
    assert choose_patch(height, width) == patch


def test_the_size_of_latents_follows_from_the_autoencoder(tmp_path):
    (tmp_path / "config.json").write_text('{"block_out_channels": [8, 8]}')
    assert latent_sides(FirstStage(str(tmp_path), 64)) == (32, 32)
    stages = [FirstStage("tiny", 64), FirstStage("identity", (32, 48)), FirstStage(SD_VAE, 256)]
    assert list(map(latent_sides, stages)) == [(16, 16), (32, 48), (32, 32)]


@pytest.mark.parametrize(("trained", "chosen"), [(64, 64), (128, 128), (96, 64), (512, 256)])
def test_an_autoencoder_of_ones_own_says_the_size_that_it_was_trained_with(
    tmp_path, trained, chosen
):
    folder = images(tmp_path / "set", (300, 300))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(f'{{"sample_size": {trained}}}')
    stage = choose_first_stage(str(folder), False, vae=str(tmp_path / "vae"))
    assert stage.image_size == chosen


def test_data_that_are_no_folder_count_as_large(monkeypatch):
    monkeypatch.setattr(first_stage, "is_available", lambda *names: True)
    assert choose_first_stage("hf:owner/name", True) == FirstStage(SD_VAE, 256)
    small = choose_first_stage("hf:owner/name", False)
    assert small == FirstStage("tiny", 64)
    assert "--image-size 64 was chosen; pass another" in small.notes[0]
    assert choose_first_stage("no/such/folder", False).notes == ()


def test_a_hub_out_of_reach_is_noted_where_it_decides(monkeypatch, tmp_path):
    monkeypatch.setattr(first_stage, "is_available", lambda *names: False)
    large = str(images(tmp_path / "large", (300, 300)))
    (note,) = choose_first_stage(large, True).notes
    assert f"{SD_VAE}, which suits these images" in note
    assert "--vae tiny --image-size 128 instead" in note
    assert choose_first_stage(large, False).notes == ()
    assert choose_first_stage(str(images(tmp_path / "small", (64, 64))), True).notes == ()


def test_the_first_images_of_a_tar_are_looked_at(tmp_path):
    folder = images(tmp_path / "set", (40, 44), (40, 90))
    with tarfile.open(tmp_path / "small.tar", "w") as tar:
        tar.add(folder, "set")
    for data in (tmp_path / "small.tar", tmp_path):
        if data == tmp_path:
            shutil.rmtree(folder)
        chosen = choose_first_stage(str(data), True)
        assert (chosen, chosen.notes) == (FirstStage("tiny", 32), ())


def test_the_size_is_that_of_three_quarters_of_the_images_by_their_shorter_side(tmp_path):
    folder = images(tmp_path / "set", (20, 900), (64, 80), (90, 70), (300, 300))
    # neither counts: a broken file, and one in a hidden folder
    (folder / "class 0" / "broken.png").write_bytes(b"no image")
    hidden = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(hidden, "png")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "small.png").write_bytes(hidden.getvalue())
    assert typical_side(folder) == 64
    assert typical_side(tmp_path / "nothing") is None
