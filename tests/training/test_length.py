"""The length of a run: of steps, epochs or minutes, decided once."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.training import TINY

from dit.config import TrainConfig
from dit.config.presets import photos
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.latents.on_the_fly import MemoryLatents
from dit.training import length
from dit.training.build_card import describe_network
from dit.training.cost import measured_time
from dit.training.cost.alignment import alignment_flops
from dit.training.cost.measured_time import Pace, measure_pace
from dit.training.cost.memory import Layout, simulated_step
from dit.training.length import round_down, with_length

SOURCE = MemoryLatents(torch.zeros(100, 1, 6, 8, 8), np.zeros(100, np.int64), [])
SPEC = describe_network(TINY, SOURCE, None)


def lengths(monkeypatch, pace=None, before=None, **changes) -> TrainConfig:
    """Return the settings with their length; without a pace none may be measured."""

    def measure(*args):
        assert pace is not None
        return pace

    monkeypatch.setattr(length, "measure_pace", measure)
    config = dataclasses.replace(photos(), **changes)
    return with_length(config, SOURCE, SPEC, before, Ranks())[0]


def test_minutes_become_steps(monkeypatch):
    config = lengths(monkeypatch, Pace(0.5))
    # 0.95 of 900 seconds, in steps of half a second
    assert (config.steps, config.minutes, config.epochs) == (1700, None, None)
    assert config.sample_every == 170
    assert config.ckpt_every == 425
    assert config.warmup == 50


@pytest.mark.parametrize(
    ("step", "minutes", "every"),
    [(0.5, 15, 170), (0.5, 60, 179), (0.5, 600, 680), (120, 15, 1), (100_000, 15, 1)],
)
def test_the_first_grid_comes_soon_and_there_are_at_most_a_hundred(
    monkeypatch, step, minutes, every
):
    assert lengths(monkeypatch, Pace(step), minutes=minutes).sample_every == every


@pytest.mark.parametrize(
    ("minutes", "grid", "every", "first"),
    [
        # seconds of a grid: few of them where they are slow, the first soon and one at the end
        (15, 8, 150, None),
        (15, 25, 500, 180),
        (2, 25, 170, None),
        (5, 60, 330, 180),
        (0.01, 25, 0, None),
    ],
)
def test_grids_take_about_a_tenth_of_the_time(monkeypatch, minutes, grid, every, first):
    config = lengths(monkeypatch, Pace(0.5, grid=grid), minutes=minutes)
    assert (config.sample_every, config.sample_first) == (every, first)
    seconds = 0.5 * config.steps + grid * length.count_previews(config, 0, config.steps)
    assert seconds <= 60 * minutes


def test_the_steps_leave_time_for_grids_at_an_interval_that_is_given(monkeypatch):
    config = lengths(monkeypatch, Pace(0.5, grid=10), sample_every=20)
    assert config.steps == 850
    assert length.count_previews(config, 0, 850) == 43
    assert length.count_previews(config, 400, 850) == 23


def test_the_time_to_encode_comes_first_but_leaves_half():
    assert Pace(1.0, once=100).steps_in(900) == 800
    assert Pace(1.0, once=2000).steps_in(900) == 450
    assert Pace(1.0, once=100, grid=50).steps_in(900, grids=2) == 700


def test_steps_and_epochs_measure_nothing(monkeypatch):
    assert lengths(monkeypatch, minutes=None, steps=40).sample_every == 4
    config = lengths(monkeypatch, minutes=None, epochs=8)
    assert (config.epochs, config.sample_every, config.ckpt_every) == (8, 2, 6)


def test_intervals_that_are_given_stay(monkeypatch):
    config = lengths(monkeypatch, Pace(0.5), sample_every=0, ckpt_every=7, warmup=3)
    assert (config.sample_every, config.ckpt_every, config.warmup) == (0, 7, 3)


def test_a_run_that_continues_keeps_its_length(monkeypatch, capsys):
    before = lengths(monkeypatch, Pace(0.5))
    assert lengths(monkeypatch, before=before) == before
    assert "--minutes is set when a run starts" in capsys.readouterr().err


def test_intervals_of_a_longer_run_follow_from_its_length_unless_given(monkeypatch):
    before = lengths(monkeypatch, minutes=None, steps=40)
    assert (before.sample_every, before.ckpt_every) == (4, 10)
    longer = lengths(monkeypatch, before=before, minutes=None, steps=40_000)
    assert (longer.sample_every, longer.ckpt_every) == (4000, 5000)
    typed = dict(steps=40_000, sample_every=4, ckpt_every=10)
    asked = lengths(monkeypatch, before=before, minutes=None, **typed)
    assert (asked.sample_every, asked.ckpt_every) == (4, 10)

    # neither a tenth nor a quarter of the steps: given when the run started
    chosen = dataclasses.replace(before, sample_every=7, ckpt_every=0)
    longer = lengths(monkeypatch, before=chosen, minutes=None, steps=40_000)
    assert (longer.sample_every, longer.ckpt_every) == (7, 0)


@pytest.mark.parametrize(("steps", "rounded"), [(7, 7), (99, 99), (1234, 1200), (98765, 98000)])
def test_steps_are_round(steps, rounded):
    assert round_down(steps) == rounded


def test_a_pace_is_measured_and_leaves_the_random_numbers_alone():
    config = dataclasses.replace(TINY, global_batch_size=4)
    source = build_source(config, load_autoencoder("identity"))
    before = torch.get_rng_state()
    spec = describe_network(config, source, None)
    pace = measure_pace(spec, config, source, 0, Ranks())
    assert 0 < pace.step < 60
    assert pace.once == 0
    assert 0 < pace.grid < 600
    assert torch.equal(before, torch.get_rng_state())


def timed(monkeypatch, **changes) -> Pace:
    """Return the pace where a plain step takes a second, and a forward pass as long."""
    config = dataclasses.replace(TINY, global_batch_size=4, **changes)
    source = build_source(config, load_autoencoder("identity"))
    spec = describe_network(config, source, None)
    monkeypatch.setattr(measured_time, "fastest_seconds", lambda work, device: work() or 1.0)
    flops = alignment_flops(spec, config)
    return measure_pace(spec, config, source, 0, Ranks(), flops)


def test_alignment_and_meanflow_take_longer_than_the_plain_step_that_is_timed(monkeypatch):
    plain = timed(monkeypatch)
    aligned = timed(monkeypatch, align="self")
    assert plain.timed
    assert aligned.timed
    assert plain.align == 0
    assert aligned.step == pytest.approx(plain.step)
    # a forward pass over some of the blocks, of three as long, and the projector
    assert 0.1 * plain.step < aligned.align < 0.7 * plain.step

    meanflow = timed(monkeypatch, objective="meanflow", meanflow_form="classic")
    assert meanflow.timed
    moving = 1 - TrainConfig().meanflow_instant
    # two passes more of three, in times that are no instants
    assert meanflow.step == pytest.approx(plain.step * (1 + 2 * moving / 3))


def test_what_no_timed_step_has_is_expected_by_its_flops(monkeypatch):
    assert not timed(monkeypatch, recompute="full").timed
    assert not timed(monkeypatch, parallel="fsdp").timed


def test_alignment_counts_in_its_share_of_the_steps(monkeypatch):
    config = lengths(monkeypatch, Pace(0.5, align=0.5), align="self", align_until=0.5)
    # 0.95 of 900 seconds, in steps of three quarters of a second in the mean
    assert config.steps == 1100
    # the first grid is drawn while it lasts, in steps of a second
    slow = lengths(monkeypatch, Pace(0.5, grid=25, align=0.5), align="self", align_until=0.5)
    assert slow.sample_first == 90


@pytest.mark.parametrize("share", [0.5, 2])
def test_only_a_step_that_fits_into_memory_is_timed(monkeypatch, share):
    """The weights fit, and the activations if there is twice the memory of a simulated step."""
    config = dataclasses.replace(TINY, global_batch_size=512)
    source = build_source(config, load_autoencoder("identity"))
    spec = describe_network(config, source, None)
    need = simulated_step(spec, config, Ranks().device, False, 0).memory(512, Layout()).total
    monkeypatch.setattr(measured_time, "free_memory", lambda device: share * need)
    before = torch.get_rng_state()
    assert measured_time.can_be_timed(spec, config, 0, Ranks()) == (share > 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("flags", [["--steps", "9"], ["--epochs", "9"]])
def test_one_length_is_enough(flags):
    from dit.cli import parse

    assert parse(TrainConfig, ["--preset", "photos", *flags], "train.py").minutes is None
    with pytest.raises(UserError, match="with --minutes 5"):
        parse(TrainConfig, ["--preset", "photos", "--minutes", "5", *flags], "train.py")
