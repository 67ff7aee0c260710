"""Steps with numbers that are not finite, or that leap: left out, logged, and gone back from."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import forked
from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.dit import SIZES
from dit.runs.checkpoints import checkpoint_step, checkpoints, find_weights, latest_checkpoint
from dit.runs.metrics import read_metrics
from dit.training import trainer
from dit.training.spike_guard import SpikeGuard

TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=16,
    steps=30,
    warmup=0,
    lr=1e-3,
    cooldown=0,
    sample_every=0,
    ckpt_every=5,
    keep=20,
    log_every=1,
    precision="fp32",
    max_skips=3,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", dict(depth=1, hidden_size=32, num_heads=2))


def poisoned(monkeypatch, batches: set[int], value: float = float("nan")) -> None:
    """Data that is `value` in these batches of the stream, whatever step takes them."""
    step = trainer.take_step

    def poison(session, batch, number):
        if number - 1 + int(session.state.guard.offset) in batches:
            batch = batch._replace(moments=torch.full_like(batch.moments, value))
        step(session, batch, number)

    monkeypatch.setattr(trainer, "take_step", poison)


def go(out: Path, **changes: object) -> Path:
    return train(dataclasses.replace(TINY, out=out, **changes), Ranks())


def events(run: Path) -> list[dict]:
    return [line for line in read_metrics(run / "metrics.jsonl") if "event" in line]


def steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def test_a_step_that_is_left_out_changes_nothing(monkeypatch, tmp_path):
    whole = go(tmp_path / "whole", steps=4)
    poisoned(monkeypatch, {4})
    run = go(tmp_path / "run", steps=5, ckpt_every=1)
    before, after = (load_file(find_weights(c)) for c in checkpoints(run)[-2:])
    state = [
        load_file(next(c.glob("state/*.safetensors")))
        for c in (latest_checkpoint(whole), *checkpoints(run)[-2:])
    ]
    trained = [
        name
        for name in state[0]
        if name.startswith(("network.", "optimizer.")) and not name.endswith(".step")
    ]
    assert [n for n in trained if not torch.equal(state[1][n], state[2][n])] == []
    assert [n for n in trained if not torch.equal(state[0][n], state[1][n])] == []
    assert all(t.isfinite().all() for t in (*before.values(), *after.values()))
    assert events(run) == [
        {"step": 5, "event": "skipped", "reason": "loss or gradient is not finite"}
    ]
    assert steps(run) == [1, 2, 3, 4]


def test_the_run_goes_on_after_a_step_that_was_left_out(monkeypatch, tmp_path):
    poisoned(monkeypatch, {3, 4, 11})
    run = go(tmp_path / "run")
    assert [e["step"] for e in events(run)] == [4, 5, 12]
    assert checkpoint_step(latest_checkpoint(run)) == 30


def test_many_in_a_row_go_back_to_the_last_checkpoint_with_other_data(monkeypatch, tmp_path):
    poisoned(monkeypatch, set(range(12, 16)))  # steps 13 to 16; looked at at 10, 15
    run = go(tmp_path / "run")
    back = [e for e in events(run) if e["event"] == "rollback"]
    assert [(e["step"], e["to"]) for e in back] == [(15, 10)]
    assert steps(run) == [
        *range(1, 11),
        *range(12, 31),
    ]  # batch 15, which step 11 took, is poisoned too
    assert checkpoint_step(latest_checkpoint(run)) == 30


def test_going_back_too_often_is_hopeless(monkeypatch, tmp_path):
    poisoned(monkeypatch, set(range(12, 1000)))
    with pytest.raises(UserError, match=r"4 times from .*step-0000010.*lower --lr"):
        go(tmp_path / "run")
    assert checkpoint_step(latest_checkpoint(tmp_path / "run")) == 10


def test_without_a_checkpoint_there_is_no_way_back(monkeypatch, tmp_path):
    poisoned(monkeypatch, set(range(2, 1000)))
    with pytest.raises(UserError, match="no checkpoint was written yet"):
        go(tmp_path / "run")


def test_stop_stops_at_the_first(monkeypatch, tmp_path):
    poisoned(monkeypatch, {12})
    with pytest.raises(UserError, match=r"not finite at step 13"):
        go(tmp_path / "run", on_divergence="stop")
    assert checkpoint_step(latest_checkpoint(tmp_path / "run")) == 10


def test_skip_goes_on_but_not_for_ever(monkeypatch, tmp_path):
    poisoned(monkeypatch, {12, 13, *range(20, 1000)})
    with pytest.raises(UserError, match=r"3 steps in a row were skipped until step 23"):
        go(tmp_path / "run", on_divergence="skip")
    assert [e["step"] for e in events(tmp_path / "run")] == [13, 14, 21, 22, 23]


def test_a_run_killed_after_it_went_back_goes_on_alike(monkeypatch, tmp_path):
    poisoned(monkeypatch, set(range(12, 16)))
    whole = go(tmp_path / "whole")
    halves = tmp_path / "halves"
    for last in (11, 14, 18, 30):  # ends before, in and after what goes wrong
        go(halves, steps=last, resume="auto")
        if last % 5:
            shutil.rmtree(
                latest_checkpoint(halves)
            )  # of a last step, which a killed run does not have
    a, b = (load_file(find_weights(run)) for run in (whole, halves))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    logs = [
        {
            line["step"]: line["loss"]
            for line in read_metrics(run / "metrics.jsonl")
            if "loss" in line
        }
        for run in (whole, halves)
    ]
    assert logs[0] == logs[1]
    assert (
        [e["event"] for e in events(halves)]
        == [e["event"] for e in events(whole)]
        == ["rollback", "skipped"]
    )


def test_ranks_leave_out_the_same_steps(tmp_path):
    forked.run(2, train_with_one_bad_rank, tmp_path)
    skipped = [e["step"] for e in events(tmp_path / "run")]
    assert skipped == [3]
    assert checkpoint_step(latest_checkpoint(tmp_path / "run")) == 6


def train_with_one_bad_rank(ranks: Ranks, root: Path) -> None:
    """NaN in the data of rank 1 alone."""
    SIZES["Ti"] = dict(depth=1, hidden_size=32, num_heads=2)
    step = trainer.take_step

    def poison(session, batch, number):
        bad = number == 3 and ranks.rank == 1
        step(
            session, batch._replace(moments=batch.moments * float("nan")) if bad else batch, number
        )

    trainer.take_step = poison
    train(dataclasses.replace(TINY, out=root / "run", steps=6), ranks)


def test_leaps_are_judged_by_mean_and_deviation():
    guard, random = SpikeGuard(5.0, CPU), torch.Generator().manual_seed(0)
    values = 1 + 0.1 * torch.randn(400, 2, generator=random)
    assert not any(guard.update(step, *pair) for step, pair in enumerate(values, start=1))
    weight, first, second = guard.moments
    share = 0.99 ** torch.arange(399, -1, -1, dtype=torch.float64)[:, None]
    assert torch.allclose(first / weight, (share * values).sum(0) / share.sum(0))
    assert torch.allclose(second / weight, (share * values.square()).sum(0) / share.sum(0))
    mean = first / weight
    deviation = (second / weight - mean.square()).sqrt()
    for number, name in enumerate(("loss", "norm")):
        for times, expected in ((4.8, 0.0), (5.2, 1.0)):
            now = mean.clone()
            now[number] += times * deviation[number]
            before = guard.moments.clone()
            assert guard.update(401, *now) == expected, name
            guard.moments.copy_(before)


def test_a_leap_is_none_before_enough_was_seen_nor_without_spike():
    for spike, seen, expected in ((5.0, 99, 0.0), (5.0, 110, 1.0), (0.0, 110, 0.0)):
        guard = SpikeGuard(spike, CPU)
        for step in range(seen):
            guard.update(step, torch.tensor(1 + step % 2 / 10), torch.tensor(1.0))
        assert guard.update(seen, torch.tensor(50.0), torch.tensor(1.0)) == expected
        assert int(guard.streak) == int(expected)


def test_what_was_left_out_is_told_once_and_in_order():
    guard = SpikeGuard(0.0, CPU)
    for step in range(8, 15):
        guard.update(
            step, torch.tensor(float("inf") if step in (9, 12) else 1.0), torch.tensor(1.0)
        )
    assert [one.step for one in guard.take_skipped()] == [9, 12]
    assert guard.take_skipped() == []
