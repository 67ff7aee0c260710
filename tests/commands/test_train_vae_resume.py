"""`dit train-vae`: checkpoints, continuing after a kill, pictures on the way, and the verdict."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.image_data import noise_file
from PIL import Image

from dit.cli import main
from dit.commands.train_vae import loop, losses
from dit.commands.train_vae.checkpoint import CHECKPOINT, has_checkpoint
from dit.commands.train_vae.learner import Learner
from dit.commands.train_vae.report import verdict
from dit.config import VaeConfig
from dit.encoders.autoencoder import CONFIG, WEIGHTS

FLAGS = "--image-size 16 --channels 8 8 --batch-size 2 --steps 8 --precision fp32"
KINDS = {
    # the discriminator starts after the kill
    "kl": "--kind kl --gan-weight 1 --gan-start 7",
    "vq": "--kind vq --codebook-size 16 --gan-weight 1 --gan-start 3",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(9):
        (folder / f"{number}.png").write_bytes(noise_file(number))
    return folder


@pytest.fixture(autouse=True, scope="module")
def fast() -> Iterator[None]:
    """Log every three steps, and restart entries in all of them.

    So a checkpoint comes between two lines of the log.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 3)
        patch.setattr(losses, "RESTART_EVERY", 1)
        yield


def act_before(monkeypatch, step: int, act: Any) -> None:
    """Do something before this step of the next training."""
    original = Learner.step

    def patched(learner: Learner, number: int, *args: Any) -> dict[str, torch.Tensor]:
        if number == step:
            act()
        return original(learner, number, *args)

    monkeypatch.setattr(Learner, "step", patched)


def kill() -> None:
    raise KeyboardInterrupt


def read_log(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("img_per_s", None)
    return lines


def train(photos: Path, out: Path, more: str = "") -> int:
    return main(f"train-vae --data {photos} --out {out} {FLAGS} {more}".split())


@pytest.fixture(scope="module")
def stopped_once(fast: None, photos: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "vae"
    with pytest.MonkeyPatch.context() as patch:
        act_before(patch, 6, kill)
        assert train(photos, out, "--ckpt-every 4 --sample-every 5") == 130
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A training that was killed in step 6, with a checkpoint of step 4 and a picture of step 5."""
    return shutil.copytree(stopped_once, tmp_path / "vae")


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_killed_training_ends_as_if_it_had_not_been(
    kind: str, photos: Path, tmp_path: Path, monkeypatch
):
    flags = f"{KINDS[kind]} --ckpt-every 4 --sample-every 5"
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train(photos, straight, flags) == 0
    with monkeypatch.context() as patch:
        act_before(patch, 6, kill)
        assert train(photos, killed, flags) == 130
    assert has_checkpoint(killed)
    assert not (killed / CONFIG).exists()

    assert main(f"train-vae --resume {killed}".split()) == 0
    assert (killed / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()
    assert read_log(killed) == read_log(straight)
    names = [{file.name for file in out.iterdir()} for out in (straight, killed)]
    assert names[0] == names[1]
    assert CHECKPOINT not in names[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_continue(
    number: int, photos: Path, tmp_path: Path, monkeypatch, capsys
):
    out = tmp_path / "vae"
    with monkeypatch.context() as patch:
        act_before(patch, 2, lambda: os.kill(os.getpid(), number))
        assert train(photos, out, "--ckpt-every 0 --sample-every 0") == 0
    command = f"dit train-vae --resume {out}"
    assert f"stopped after step 2 of 8; continue with: {command}\n" in capsys.readouterr().out
    assert not (out / CONFIG).exists()
    assert main(command.split()[1:]) == 0
    assert (out / CONFIG).exists()


def test_info_says_how_to_continue(stopped: Path, capsys):
    assert main(["info", str(stopped)]) == 0
    printed = capsys.readouterr().out
    assert "4 of 8 steps" in printed
    # a narrow table breaks lines
    assert f"dit train-vae --resume {stopped}".replace(" ", "") in "".join(printed.split())


def test_a_stopped_training_is_not_replaced(stopped: Path, photos: Path, capsys):
    before = (stopped / CHECKPOINT).read_bytes()
    assert train(photos, stopped) == 2
    message = f"stopped after step 4 of 8; expected .* pass --resume {stopped} to continue it"
    assert re.search(message, capsys.readouterr().err)
    assert (stopped / CHECKPOINT).read_bytes() == before


def test_resume_auto_starts_continues_and_leaves_what_is_complete(
    photos: Path, tmp_path: Path, monkeypatch, capsys
):
    out = tmp_path / "vae"
    with monkeypatch.context() as patch:
        act_before(patch, 6, kill)
        assert train(photos, out, "--ckpt-every 4 --resume auto") == 130
    # other flags are a mistake in a script, these are not
    assert train(photos, out, "--lr 1e-3 --resume auto") == 2
    assert "--lr 0.004 before, --lr 0.001 now" in capsys.readouterr().err
    assert train(photos, out, "--ckpt-every 3 --resume auto") == 0
    before = (out / WEIGHTS).stat()

    assert train(photos, out, "--resume auto") == 0
    printed = capsys.readouterr().out
    assert "all 8 steps were done before" in printed
    assert "next: dit train --data" in printed
    assert (out / WEIGHTS).stat() == before
    assert main(f"train-vae --resume {out} --steps 9".split()) == 2
    assert "--steps 8 before, --steps 9 now" in capsys.readouterr().err


def test_resume_auto_takes_the_settings_of_the_checkpoint(stopped: Path, photos: Path, capsys):
    """Without --image-size: a machine of another kind would choose another one."""
    # typed flags count
    command = f"train-vae --data {photos} --out {stopped} --resume auto"
    assert main(f"{command} --image-size 32".split()) == 2
    assert "--image-size 16 before, --image-size 32 now" in capsys.readouterr().err
    assert main(command.split()) == 0
    assert main(command.split()) == 0
    assert "all 8 steps were done before" in capsys.readouterr().out


def test_a_training_continues_from_another_folder_and_warns_of_other_files(
    photos: Path, tmp_path: Path, monkeypatch, capsys
):
    shutil.copytree(photos, tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        act_before(patch, 6, kill)
        assert train(Path("pictures"), Path("vae"), "--ckpt-every 4 --sample-every 0") == 130
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    command = f"train-vae --resume {tmp_path / 'vae'}"
    with monkeypatch.context() as patch:
        act_before(patch, 6, kill)
        assert main(command.split()) == 130
    assert "warning: names, sizes or times" not in capsys.readouterr().err

    (tmp_path / "pictures" / "3.png").write_bytes(noise_file(99, "BMP"))
    assert main(command.split()) == 0
    assert "warning: names, sizes or times" in capsys.readouterr().err
    report = json.loads((tmp_path / "vae" / "report.json").read_text())
    assert report["config"]["data"] == str(tmp_path / "pictures")


def test_a_named_training_may_get_other_steps_and_rates(stopped: Path, capsys):
    assert main(f"train-vae --resume {stopped} --steps 3".split()) == 2
    assert "--steps 3 for " in capsys.readouterr().err
    assert main(f"train-vae --resume {stopped} --steps 9 --lr 1e-3".split()) == 0
    printed = capsys.readouterr().out
    assert "changed  --steps 8 before, --steps 9 now; --lr 0.004 before, --lr 0.001 now" in printed
    assert read_log(stopped)[-1]["step"] == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--resume {out} --batch-size 3", "--batch-size 2 before, --batch-size 3 now"),
        ("--resume {out} --seed 1", "--seed 0 before, --seed 1 now"),
        ("--resume {out} --out {tmp}/other", "expected one folder; drop --out"),
        ("--resume {tmp}/nowhere", "no checkpoint there; expected a folder of dit train-vae"),
        ("--resume {out} --data digits", "expected 7, as when the training in"),
    ],
)
def test_what_cannot_continue(flags: str, message: str, stopped: Path, capsys):
    command = f"train-vae {flags.format(out=stopped, tmp=stopped.parent)}"
    assert main(command.split()) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("error:") == 1


def test_a_damaged_checkpoint_is_refused(stopped: Path, photos: Path, capsys):
    file = stopped / CHECKPOINT
    file.write_bytes(file.read_bytes()[:-8])
    for command in (f"train-vae --resume {stopped}", f"train-vae --out {stopped} --resume auto"):
        assert main(command.split()) == 2
        assert "to start over, remove" in capsys.readouterr().err
    file.unlink()
    assert train(photos, stopped) == 0


def test_pictures_and_their_psnr_are_written_on_the_way(photos: Path, tmp_path: Path, capsys):
    out = tmp_path / "vae"
    assert train(photos, out) == 0
    files = sorted(file.name for file in (out / "samples").iterdir())
    assert files == [f"step-000000{step}.png" for step in (2, 4, 6, 8)]
    Image.open(out / "samples" / files[-1]).verify()
    shown = {line["step"]: line["psnr"] for line in read_log(out) if "psnr" in line}
    assert list(shown) == [2, 4, 6, 8]
    printed = capsys.readouterr()
    assert f"PSNR {shown[8]:.1f} dB" in printed.err
    # both held-out images are in the picture
    scores = json.loads((out / "report.json").read_text())["scores"]
    assert shown[8] == pytest.approx(scores["PSNR"], abs=0.05)
    assert f"quality: PSNR {scores['PSNR']:.1f} dB: not enough" in printed.out

    shutil.rmtree(out)
    assert train(photos, out, "--sample-every 0") == 0
    assert not (out / "samples").exists()


def test_the_verdict_says_what_raises_the_psnr(tmp_path: Path):
    cfg = VaeConfig(out=tmp_path)
    assert len(verdict(cfg, 28.0)) == 1
    advice = verdict(cfg, 18.0)[1]
    assert "--steps 2400; --latent-channels 8; wider --channels, such as 32 64 64" in advice
    assert "shrink by 2 and not by 4" in advice
    assert "shrink" not in verdict(VaeConfig(out=tmp_path, channels=(8, 8)), 18.0)[1]


def test_the_loss_that_is_not_finite_leaves_the_checkpoint(stopped: Path, capsys):
    before = (stopped / CHECKPOINT).read_bytes()
    assert main(f"train-vae --resume {stopped} --lr 1e30".split()) == 2
    assert "lower --lr" in capsys.readouterr().err
    assert (stopped / CHECKPOINT).read_bytes() == before
