"""Recipes of the benchmark of seconds: their flags, and names that are refused."""

import shlex
import sys

import pytest
from helpers.training import run

from benchmarks import time_to_quality
from benchmarks.time_to_quality import (
    COMMON,
    FLOW,
    LEVERS,
    LONG,
    OURS,
    SHORT,
    TURNS,
    Bench,
    known_recipes,
    recipe_flags,
    sampler_of,
)
from dit.cli import main, parse
from dit.config import TrainConfig
from dit.config.presets import modern
from dit.runs.logs import read_starts


def test_a_lever_is_alone_on_flow_or_left_out_of_ours():
    assert recipe_flags("flow") == FLOW
    assert recipe_flags("flow+muon") == f"{FLOW} {LEVERS['muon']}"
    assert recipe_flags("ours") == " ".join([FLOW, *(LEVERS[lever] for lever in OURS)])
    assert recipe_flags("ours+route") == f"{recipe_flags('ours')} {LEVERS['route']}"
    for lever in OURS:
        assert LEVERS[lever] not in recipe_flags(f"ours-{lever}")


def test_no_training_is_named_twice():
    """Each takes minutes."""
    flags = [recipe_flags(recipe) for recipe in known_recipes()]
    assert len(set(flags)) == len(flags)


def test_a_part_of_the_budget_has_a_part_of_the_steps(monkeypatch, tmp_path):
    monkeypatch.setattr(Bench, "seconds_per_step", lambda bench, recipe: len(recipe) / 100)
    bench = Bench("emoji-64", tmp_path, minutes=10, samples=500)
    names = ("ours", "ours-third", "ours-fiftieth")
    # 0.04 seconds a step, by the whole recipe's name
    assert [bench.steps_in_budget(name) for name in names] == [15000, 5000, 300]


def test_a_budget_of_steps_is_the_same_for_every_recipe(tmp_path):
    bench = Bench("emoji-64", tmp_path, minutes=10, samples=500, steps=246)
    assert [bench.steps_in_budget(name) for name in ("2022", "ours", "ours-third")] == [
        246,
        246,
        82,
    ]
    assert bench.run("flow", 1) == tmp_path / "emoji-64/246-steps/flow-1"


def test_recipes_take_turns_when_their_speed_is_measured(monkeypatch, tmp_path):
    """A machine that slows down while one of them is measured would favour the others."""
    order = []

    def cpu_seconds(bench, recipe, steps):
        order.append((recipe, steps))
        slower = 10 if len(order) > 10 else 1  # only in the last turn
        return 5 + slower * steps * {"flow": 0.9, "ours": 0.3}[recipe]

    monkeypatch.setattr(Bench, "cpu_seconds", cpu_seconds)
    bench = Bench("emoji-64", tmp_path, minutes=10, samples=500)
    bench.measure_speeds(["flow", "ours", "ours"])
    turn = [(recipe, steps) for recipe in ("flow", "ours") for steps in (LONG, SHORT)]
    assert order[2:] == TURNS * turn

    assert bench.seconds_per_step("flow") == pytest.approx(0.9)
    assert bench.seconds_per_step("ours") == pytest.approx(0.3)
    assert len(order) == 2 + TURNS * 4  # and not again


def test_a_part_of_the_budget_is_sampled_as_the_whole():
    assert sampler_of("2022-third") == sampler_of("2022") == "ddim"
    assert sampler_of("ours-third") == sampler_of("ours") != "ddim"


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize(
    "settings",
    [dict(align="self", align_until=0.5), dict(objective="meanflow", meanflow_scale=1.5)],
)
def test_a_row_has_the_flops_of_the_run(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(Bench, "seconds_per_step", lambda bench, recipe: 1.0)
    trained = run(tmp_path / "run", steps=2, **settings)
    (start,) = read_starts(trained)
    bench = Bench("emoji-64", tmp_path, minutes=1, samples=1)
    row = bench.row("flow", trained, 2, {1.0: 5.0}, 1.0)
    assert row["flops"] == 2 * 16 * start["flops_per_image"]


def test_ours_can_be_planned(capsys):
    main(shlex.split(f"train --dry-run {recipe_flags('ours')}"))
    assert "schedule" in capsys.readouterr().out


def test_ours_is_the_network_of_the_preset_modern():
    config = parse(TrainConfig, shlex.split(f"{COMMON} {recipe_flags('ours')}"), "train.py")
    for name in ("model", "block", "compile", "lr", "global_batch_size"):
        assert getattr(config, name) == getattr(modern(), name)


@pytest.mark.parametrize("recipe", ["ours-third", *known_recipes()])
def test_every_recipe_is_one_that_the_command_takes(recipe):
    config = parse(TrainConfig, shlex.split(f"{COMMON} {recipe_flags(recipe)}"), "train.py")
    small = (recipe.startswith("ours") and recipe != "ours-micro") or recipe == "flow+micro"
    assert config.model.startswith("DiT-Mi") == small


@pytest.mark.parametrize("typed", [("--recipes", "flwo"), ("--steps", "0"), ("--steps", "9")])
def test_unknown_recipes_and_too_few_steps_are_refused(monkeypatch, typed):
    """They would train as `flow`, or for other steps, under another name."""
    monkeypatch.setattr(sys, "argv", ["time_to_quality", *typed])
    with pytest.raises(SystemExit):
        time_to_quality.main()
