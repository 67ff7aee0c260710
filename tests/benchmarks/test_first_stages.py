"""Roads of the comparison of first stages: equal time, and flags that the command takes."""

import json
import shlex

import pytest

from benchmarks import first_stages
from benchmarks.first_stages import ROADS, Lab
from dit.cli import parse
from dit.config import TrainConfig

START, STEP = 5.0, 0.5  # CPU seconds of a training that is not run


@pytest.fixture
def performed(monkeypatch, tmp_path):
    """A lab without trainings, and the seconds of what it would have run, by name."""
    took = {}

    def seconds(lab, command, steps, name="speed"):
        took[name] = START + STEP * steps
        return took[name]

    monkeypatch.setattr(Lab, "seconds", seconds)
    monkeypatch.setattr(first_stages, "find_weights", lambda run: run / "step" / "weights")
    monkeypatch.setattr(first_stages, "distances", lambda *_: ({1.5: 3.0}, 1.0))
    return Lab(tmp_path, budget=240.0, samples=500), took


def test_a_training_fills_its_time(performed):
    lab, took = performed
    road = lab.take("tiny-4")
    assert took["tiny-4"] == pytest.approx(240, abs=STEP)
    assert road["steps"] == (240 - START) / STEP
    assert road["distance"] == 3.0


def test_an_autoencoder_trained_along_counts(performed):
    lab, took = performed
    road = lab.take("own-4")
    assert took["own"] == pytest.approx(80, abs=STEP)
    assert sum(road["seconds"].values()) == pytest.approx(240, abs=STEP)
    # another patch uses the same autoencoder, and pays for it too
    took.clear()
    assert lab.take("own-2")["seconds"]["first_stage"] == road["seconds"]["first_stage"]
    assert "own" not in took


def test_what_is_done_is_kept(performed):
    lab, took = performed
    road = lab.take("pixels-8")
    took.clear()
    assert lab.take("pixels-8") == road
    assert not took
    json.dumps(road)


@pytest.mark.parametrize("road", [road for road in ROADS if road.endswith("-4")])
def test_every_road_is_one_that_the_command_takes(road):
    flags = ROADS[road].format(own="digits")
    words = shlex.split(f"--data digits --preset photos --image-size 32 {flags}")
    assert parse(TrainConfig, words, "train.py").model == "DiT-Ti/4"
