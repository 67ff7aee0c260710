"""--help: examples first, basic flags on two screens, everything with --help-all."""

import dataclasses
import shlex

import pytest
from PIL import Image

from dit.cli import COMMANDS, main, parse
from dit.config import ConvertConfig, TrainConfig
from dit.config.flag_names import flag_name, is_positional
from dit.config.help import OTHER, help_texts
from dit.config.help_guides import GUIDES
from dit.utils.files import as_started

SCREENS = 80  # lines


def page(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_two_screens(name, capsys):
    lines = page(capsys, name, "--help").splitlines()
    assert lines[0].startswith(f"usage: dit {name}")
    assert len(lines) <= SCREENS
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_all_flags_are_named_and_help_all_describes_them(name, capsys):
    config, _ = COMMANDS[name]
    texts = help_texts(config)
    short, full = page(capsys, name, "--help"), page(capsys, name, "--help-all")
    joined = " ".join(full.split())
    for field in dataclasses.fields(config):
        shown = field.name.upper() if is_positional(field) else flag_name(field.name)
        assert shown in short.replace(",", " ").split()
        assert shown in full.replace(",", " ").split()
        assert as_started(texts[field.name].text) in joined


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_command_lines(name, tmp_path, monkeypatch):
    config, _ = COMMANDS[name]
    # training looks at the images before it knows its settings
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "cats" / "1.png")
    monkeypatch.chdir(tmp_path)
    for flags, what in GUIDES[config].examples:
        parse(config, shlex.split(flags), f"dit {name}")
        assert what


def test_groups_are_in_order(capsys):
    lines = page(capsys, "train", "--help-all").splitlines()
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == [
        *("examples:", "basics:", "data:", "network:", "diffusion:", "optimisation:", "run:"),
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_of_long_pages_have_a_group(name):
    config, _ = COMMANDS[name]
    basics = GUIDES[config].basics
    others = [name for name, text in help_texts(config).items() if text.group == OTHER]
    assert not basics or set(others) <= set(basics)


def test_defaults_are_those_of_the_preset(capsys):
    shown = " ".join(page(capsys, "train", "--preset", "imagenet-256", "--help").split())
    assert "accumulation steps. (default: 256)" in shown
    assert "by size and patch; UNet-{S,B}; or MODULE:CLASS. (default: DiT-XL/2)" in shown


def test_help_of_a_command_is_that_of_its_flag(capsys):
    assert page(capsys, "help", "encode") == page(capsys, "encode", "--help")
    assert main(["help"]) == 0
    overview = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == overview


def test_help_wins_over_a_wrong_flag(capsys):
    assert page(capsys, "info", "--nonsense", "-h").startswith("usage: dit info PATH")


@pytest.mark.parametrize(("columns", "longest"), [("1", 40), ("60", 60), ("2000", 100)])
def test_lines_end_where_the_terminal_does(columns, longest, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for name in COMMANDS:
        flags = page(capsys, name, "--help-all").split("\n\n", 3)[3]
        assert max(map(len, flags.splitlines())) <= longest


def test_values_are_shown_by_kind(capsys):
    shown = page(capsys, "train", "--help-all")
    for typed in (
        "--image-size N [N]",
        "--lr X ",
        "--flip, --no-flip",
        "--gpus N ...",
        "--out PATH",
    ):
        assert typed in shown
    assert "--time-shift X|auto" in shown
    assert "--objective {eps, x0, v, meanflow}" in shown
    assert "(default: )" not in shown
    assert "None" not in shown
    assert "FILE" in page(capsys, "convert", "--help")
    assert [*help_texts(ConvertConfig)][:2] == ["file", "out"]


def test_all_commands_that_sample_take_the_same_runs():
    kinds = [COMMANDS[name][0] for name in ("sample", "edit", "play", "show", "sweep", "nll")]
    (text,) = {help_texts(kind)["run"].text for kind in kinds}
    assert "folder of `dit export`" in text
    assert "OWNER/NAME" in text


def test_help_texts_of_a_run_come_with_its_settings():
    texts = help_texts(TrainConfig)
    assert texts["lr"].text == "Peak learning rate."
    assert texts["lr"].group == "optimisation"
