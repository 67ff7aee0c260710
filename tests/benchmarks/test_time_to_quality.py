"""Recipes of the benchmark of seconds: their flags, and names that are refused."""

import shlex
import sys

import pytest

from benchmarks import time_to_quality
from benchmarks.time_to_quality import FLOW, LEVERS, OURS, recipe_flags, recipes_with_levers
from dit.cli import main


def test_a_lever_is_alone_on_flow_or_left_out_of_ours():
    assert recipe_flags("flow") == FLOW
    assert recipe_flags("flow+muon") == f"{FLOW} {LEVERS['muon']}"
    assert recipe_flags("ours") == " ".join([FLOW, *(LEVERS[lever] for lever in OURS)])
    for lever in OURS:
        assert LEVERS[lever] not in recipe_flags(f"ours-{lever}")


@pytest.mark.parametrize("recipe", ["2022", "flow", "ours", *recipes_with_levers()])
def test_every_recipe_is_one_that_the_command_takes(recipe, capsys):
    main(shlex.split(f"train --model DiT-Ti/4 --dry-run {recipe_flags(recipe)}"))
    assert "schedule" in capsys.readouterr().out


def test_unknown_recipes_are_refused(monkeypatch):
    """They would train as `flow` under another name."""
    monkeypatch.setattr(sys, "argv", ["time_to_quality", "--recipes", "flwo"])
    with pytest.raises(SystemExit):
        time_to_quality.main()
