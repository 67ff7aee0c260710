"""The road of a new user with a folder of images: train, sample, evaluate, report, as typed."""

import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from dit.cli import main
from dit.report import text
from dit.runs.checkpoint_files import read_card
from dit.training import length
from dit.training.cost.measured_time import Pace

FORMATS = ("png", "jpg", "webp", "gif", "bmp")
FEW = ["--precision", "fp32"]

pytestmark = pytest.mark.usefixtures("small_networks")


def render(root: Path, each: int = 30) -> None:
    """Write red discs and blue bars of many sizes and formats, and what may lie beside them."""
    chance = random.Random(0)
    for name, colour in (("red discs", (220, 30, 30)), ("blue bars", (30, 60, 220))):
        (root / name).mkdir(parents=True)
        for number in range(each):
            width, height = chance.randint(64, 300), chance.randint(64, 300)
            image = Image.new("RGB", (width, height), "white")
            box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
            pen = ImageDraw.Draw(image)
            draw = pen.ellipse if name == "red discs" else pen.rectangle
            draw(box, fill=colour)
            image.save(root / name / f"{name} {number}.{FORMATS[number % len(FORMATS)]}")
    (root / "nothing yet").mkdir()
    (root / "notes.txt").write_text("holiday")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    render(Path("my photos"))
    return Path("my photos")


def typed(*words: str) -> int:
    return main([str(word) for word in words])


def test_from_a_folder_to_a_report(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    assert typed("train", "--data", folder, "--steps", "2", "--out", "run", *FEW) == 0
    out, err = capsys.readouterr()
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[:7])
    assert rows["preset"].startswith("photos")
    assert "60 images in 2 classes (30 each), flips on" in rows["data"]
    assert rows["latents"].startswith("4x16x16 from 64x64 pixels, tiny (factor 4); PSNR ")
    assert "2 steps of 32 images (1.1 epochs)" in rows["schedule"]
    assert rows["model"].startswith("DiT-Ti/4, ")
    assert "first grid after" in rows["time"]
    assert "for 2 checkpoints in run" in rows["disk"]
    assert "1 subfolder of my photos without images: no class (nothing yet)" in err
    assert "1 file left out in my photos (1 .txt)" in err
    assert re.search(r"^next +\S.*--run run --cfg-scale 1.5$", out, re.MULTILINE)
    config = read_card(Path("run")).config
    assert (config.vae, config.image_size, config.sample_every) == ("tiny", 64, 1)

    sampler = ["--cfg-scale", "1.5", "--steps", "2", *FEW]
    one = ["--classes", "blue bars", "--per-class", "2", "--out", "grid.png"]
    assert typed("sample", "--run", "run", *sampler, *one) == 0
    with Image.open("grid.png") as grid:
        assert min(grid.size) >= 64

    # colour-cnn, for Inception's weights are not here
    monkeypatch.setenv("TORCH_HOME", "torch")
    assert typed("evaluate", "--run", "run", *sampler, "--num-samples", "8") == 0
    scored = Path("run/evaluation/report.html").read_text()
    verdict = re.search(r"FD\(colour-cnn\) is [\d.]+ times that of real images", scored)
    assert verdict

    assert typed("report", "run") == 0
    page = Path("run/report.html").read_text()
    assert "DiT-Ti/4" in page
    assert re.search(r"Newest evaluation \(.*step 2\)\. ", page)
    assert verdict[0] in page
    scores = json.loads(Path("run/evaluation/report.json").read_text())["scores"]
    # in the table of evaluations
    assert f">FD {text.number(scores['FD(colour-cnn)']['value'])} <" in page


def test_a_run_by_the_clock_resumes_with_the_steps_that_it_began_with(folder, monkeypatch):
    speeds = [Pace(100.0), Pace(1.0)]
    monkeypatch.setattr(length, "measure_pace", lambda *args: speeds.pop(0))
    train = ["train", "--data", folder, "--out", "run", "--resume", "auto", "--minutes", "5"]
    train += ["--model", "DiT-Ti/8", "--sample-every", "0", *FEW]
    assert typed(*train) == 0
    first = json.loads(Path("run/config.json").read_text())["config"]
    assert (first["steps"], first["minutes"]) == (2, None)
    assert typed(*train) == 0
    assert json.loads(Path("run/config.json").read_text())["config"] == first
    assert len(speeds) == 1


def test_nonsense_is_questioned_and_a_dry_run_checks_the_images(folder: Path, capsys):
    dry = ["train", "--data", folder, "--dry-run", *FEW]
    wrong = ["--vae", "digits", "--epochs", "35000", "--batch-size", "100"]
    assert typed(*dry, *wrong) == 0
    out, err = capsys.readouterr()
    warnings = [line for line in out.splitlines() if line.startswith("warning")]
    found = [re.findall("--batch-size 100 of 60|35,000 epochs|--vae digits", w) for w in warnings]
    assert sorted(found) == [["--batch-size 100 of 60"], ["--vae digits"], ["35,000 epochs"]]
    assert "start: looking at the images of my photos\n" in err
    lost = "--vae digits was trained on gray digits alone: these images lose their colours"
    assert f"warning: {lost}" in err

    (folder / "red discs" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    assert typed(*dry, "--steps", "3") == 2
    assert "1 of 61 images cannot be read" in capsys.readouterr().err
    assert typed(*dry, "--steps", "3", "--skip-damaged") == 0
    assert "60 images in 2 classes (30 each), 1 left out" in capsys.readouterr().out


def test_a_mistyped_folder_is_named_at_once(folder: Path, capsys):
    assert typed("train", "--data", "my photo", "--out", "run") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --data my photo is neither `digits` nor a folder; ")
    assert "did you mean my photos?" in err
    assert "looking at the images" not in err
    # the flags can be read about without data
    with pytest.raises(SystemExit) as page:
        typed("train", "--data", "my photo", "--help")
    assert page.value.code == 0


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        (["--data", "my photos"], "photos"),
        (["--preset", "photos"], "photos"),
        (["--data", "digits"], "digits"),
        (["--data", "my photos", "--preset", "modern"], "modern"),
        ([], "digits"),
    ],
)
def test_images_have_a_preset_of_their_own_unless_one_is_typed(folder, flags, preset):
    from dit.cli import parse
    from dit.config import TrainConfig

    assert parse(TrainConfig, flags, "train.py").preset == preset


def test_a_run_of_an_earlier_version_continues_by_the_command_that_began_it(folder, capsys):
    from dit.cli import parse
    from dit.config import TrainConfig

    flags = ["--data", "my photos", "--out", "run", "--resume", "auto"]
    # what those versions took where nothing was typed
    few = ["--model", "DiT-Ti/8", "--batch-size", "2", "--steps", "1", "--sample-every", "0"]
    assert typed("train", *flags, "--preset", "digits", *few, *FEW) == 0
    unchanged = parse(TrainConfig, [*flags, "--steps", "2"], "train.py")
    assert (unchanged.preset, unchanged.vae, unchanged.model) == ("digits", "digits", "DiT-Ti/8")
    assert typed("train", *flags, "--steps", "2") == 0
    assert read_card(Path("run")).config.steps == 2
