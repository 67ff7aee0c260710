"""--vae and --image-size: unless given, those of the latents or the run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit.cli import main, parse
from dit.config import EncodeConfig, TrainConfig
from dit.latents.store import read_index
from dit.runs.checkpoint_files import read_card

pytestmark = pytest.mark.usefixtures("small_networks")

TINY = ["--model=DiT-Ti/4", "--global-batch-size=4", "--steps=1", "--sample-every=0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of four images, and latents of them at 8 px."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 256, (2, 4, 12, 12, 3), np.uint8)
    for name, images in zip(("cat", "dog"), values, strict=True):
        Path("images", name).mkdir(parents=True)
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(f"images/{name}/{i}.png")
    assert main(words("encode --data images --out latents --vae identity --image-size 8")) == 0
    return tmp_path


def words(line: str) -> list[str]:
    return line.split()


def settings(line: str) -> tuple[str, object]:
    config = parse(TrainConfig, words(line), "train.py")
    return config.vae, config.image_size


def test_latents_say_theirs_whatever_the_preset(folder: Path, capsys):
    assert settings("--data latents") == ("identity", 8)
    assert capsys.readouterr().err == "start: looking at the latents of latents\n"
    assert settings("--data latents --preset imagenet-256") == ("identity", 8)
    assert settings("--data latents --vae digits") == ("digits", 8)
    assert settings("--data latents --image-size 16 24") == ("identity", (16, 24))
    # of images of 12 px follows what suits them
    assert settings("--data images") == ("tiny", 32)
    assert settings("--data images --preset digits") == ("digits", 32)
    assert settings("--data imagenet --preset imagenet-256") == ("stabilityai/sd-vae-ft-ema", 256)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--vae digits --image-size 8", ("encoded by identity", "not by --vae digits")),
        ("--image-size 16", ("encoded with --image-size 8", "not --image-size 16")),
    ],
)
def test_a_value_that_contradicts_is_refused_and_both_are_named(folder: Path, flags, parts, capsys):
    assert main(["train", *words(f"--data latents {flags} --out run"), *TINY]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts)
    assert not Path("run").exists()


def test_a_run_continues_with_its_own_by_name_and_by_auto(folder: Path):
    train = ["train", *words("--data latents --out run"), *TINY]
    assert main([*train, "--resume", "auto"]) == 0
    # earlier versions warmed up for 50 steps unless told otherwise
    card = json.loads(Path("run/config.json").read_text())
    assert card["config"]["warmup"] == 0
    card["config"]["warmup"] = 50
    Path("run/config.json").write_text(json.dumps(card))
    assert main([*train, "--resume", "auto", "--steps", "2"]) == 0
    assert main(words("train --resume run --steps 3")) == 0
    assert read_card(Path("run")).config.warmup == 50


def test_encode_continues_with_those_of_its_latents(folder: Path, capsys):
    before = read_index(Path("latents"))
    assert main(words("encode --data images --out latents")) == 0
    assert read_index(Path("latents")) == before
    assert main(words("encode --data images --out latents --image-size 16")) == 2
    assert "latents with image_size 8, not 16" in capsys.readouterr().err


def test_encode_chooses_what_suits_the_images(folder: Path):
    from dit.commands.encode import first_stage_of
    from dit.latents.first_stage import FirstStage

    stages = {}
    for data in ("digits", "images"):
        stages[data] = first_stage_of(EncodeConfig(data=data, out=Path("new")), gpu=False)
    assert stages == {"digits": FirstStage("digits", 32), "images": FirstStage("tiny", 32)}


def test_a_classifier_refuses_latents_unlike_those_of_its_run(folder: Path, capsys):
    assert main(["train", *words("--data latents --out run"), *TINY]) == 0
    assert main(words("encode --data images --out larger --vae identity --image-size 12")) == 0
    capsys.readouterr()
    for command in ("train-classifier --run run", "nll --run run"):
        assert main(words(f"{command} --data larger")) == 2
        error = capsys.readouterr().err
        assert "--data larger was encoded with --vae identity --image-size 12" in error
        assert "run was trained with --vae identity --image-size 8" in error
        assert "encode again: `dit encode --data IMAGES --out OTHER --vae identity" in error


def test_latents_name_a_local_autoencoder_from_anywhere(folder: Path, monkeypatch):
    from helpers.autoencoders import save_tiny

    save_tiny(folder / "vae")
    assert main(words("encode --data images --out theirs --vae vae --image-size 8")) == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["train", *words("--data ../theirs --out run"), *TINY, "--model", "DiT-Ti/2"]) == 0


def test_statistics_name_the_images_behind_latents(folder: Path, capsys):
    assert main(words("stats --data latents --out stats.npz")) == 2
    assert f"pass --data {folder / 'images'} --image-size 8" in capsys.readouterr().err
