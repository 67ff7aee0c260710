"""The command that each command prints last, as `next`: it is typed, with tiny settings."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import write_run
from helpers.foreign import dit_weights, saved

from dit.cli import main
from dit.runs.checkpoint_files import read_card

TRAIN = "--model DiT-Ti/4 --global-batch-size 8 --steps 2 --sample-every 0 --precision fp32"
SAMPLE = "--steps 2 --per-class 1 --precision fp32"

pytestmark = pytest.mark.usefixtures("small_networks")


class Shell:
    """A user in a folder without scripts, who types what was printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self.capsys = capsys

    def type(self, line: str) -> str:
        """Run a command line; return the next one that it prints."""
        program, *words = shlex.split(line)
        assert program == "dit"
        code = main(words)
        out, err = self.capsys.readouterr()
        assert code == 0, err
        found = re.findall(r"\bnext:? +(.*)$", out, re.MULTILINE)
        return found[-1] if found else ""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


@pytest.fixture
def encode() -> str:
    return "dit encode --data digits --vae identity --image-size 8"


def test_from_latents_to_images(shell: Shell, encode: str):
    train = shell.type(f"{encode} --out 'my latents'")
    assert train == "dit train --data 'my latents'"
    sample = shell.type(f"{train} {TRAIN} --out run --ema-lengths 0.1")
    card = read_card(Path("run"))
    assert (card.config.vae, card.config.image_size) == ("identity", 8)
    # as the previews were guided
    assert sample == "dit sample --run run --cfg-scale 1.5"
    shell.type(f"{sample} {SAMPLE} --classes 3")

    average = shell.type("dit ema run --length 0.1")
    assert re.fullmatch(r"dit sample --run run/ema-length-0.1\S+ --cfg-scale 1.5", average)
    shell.type(f"{average} {SAMPLE} --classes 3")

    guided = shell.type(
        "dit train-classifier --run run --model Classifier-Ti/4 --steps 2 --global-batch-size 8"
    )
    assert guided.startswith("dit sample --run run --classifier run/classifier ")
    shell.type(f"{guided} {SAMPLE} --classes 3")


def test_after_an_edit_comes_the_one_of_the_next_seed(shell: Shell, tmp_path: Path):
    write_run(tmp_path / "my run")
    flags = "--steps 2 --precision fp32 --per-class 1 --classes 3"
    first = f"dit edit --run 'my run' {flags} --interpolate --frames 2"
    second = shell.type(first)
    words = "--interpolate --frames 2 --classes 3 --per-class 1"
    assert second == f"dit edit --run 'my run' --steps 2 --seed 1 --precision fp32 {words}"
    shell.type(second)
    assert len(list(Path("my run/edits").iterdir())) == 2

    third = shell.type(f"{first} --seeds 0 5 --out here")
    assert "--seeds 5 6" in third
    assert third.endswith("--out here-seed-6")
    shell.type(third)
    assert Path("here-seed-6/grid.png").exists()


def test_a_run_without_classes_is_not_guided(shell: Shell, encode: str):
    train = shell.type(f"{encode} --out latents --num-classes 0")
    sample = shell.type(f"{train} {TRAIN} --out run")
    assert sample == "dit sample --run run"
    shell.type(f"{sample} {SAMPLE}")


def test_from_captions_to_images(shell: Shell, encode: str):
    train = shell.type(f"{encode} --out latents --captions")
    assert train == "dit train --data latents --conditioning text --text-encoder digits"
    sample = shell.type(f"{train} {TRAIN} --out run")
    shell.type(f"{sample} {SAMPLE} --prompt 'a seven'")


def test_a_first_stage_is_trained_on_with_the_size_that_it_was_made_for(shell: Shell):
    train = shell.type(
        "dit train-vae --data digits --out vae --image-size 16 --steps 2 --channels 8 8"
    )
    shell.type(f"{train} {TRAIN} --out run")
    card = read_card(Path("run"))
    assert (card.config.vae, card.config.image_size) == (str(Path("vae").absolute()), 16)


def test_a_converted_file_is_sampled_from(shell: Shell, tmp_path: Path):
    file = saved(tmp_path, dit_weights())
    names = "tench goldfish hen cock ostrich"
    sample = shell.type(
        f"dit convert {file.name} new.safetensors --format dit --vae identity --classes {names}"
    )
    assert sample == "dit sample --run new.safetensors --cfg-scale 4 --cfg-channels 3"
    shell.type(f"{sample} {SAMPLE} --classes goldfish")


def test_where_a_script_was_typed_the_next_one_is_named(
    shell: Shell, encode: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    assert main([*shlex.split(encode)[1:], "--out", "latents"]) == 0
    assert "next: python train.py --data latents\n" in shell.capsys.readouterr().out
