"""Steps with numbers that are not finite, or that spike: skipped, logged, and rolled back from."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from helpers import forked
from helpers.training import TINY, differing, logged, run
from safetensors.torch import load_file

from dit.commands.train import train
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.checkpoint_files import checkpoint_step, checkpoints, find_weights, latest_checkpoint
from dit.runs.logs import read_metrics
from dit.training import trainer
from dit.training.spike_guard import SpikeGuard

GUARDED = dataclasses.replace(
    TINY, steps=30, warmup=0, lr=1e-3, cooldown=0, ckpt_every=5, keep=20, log_every=1, max_skips=3
)
SMALLER = dict(depth=1, hidden_size=32, num_heads=2)
CPU = torch.device("cpu")
NAN = float("nan")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", SMALLER)


@pytest.fixture
def poison(monkeypatch):
    """Data that is NaN at some positions of the stream, whatever step takes them."""

    def poison(positions: set[int]) -> None:
        take_step = trainer.take_step

        def poisoned(session, batch, step):
            if session.position(step) in positions:
                batch = batch._replace(moments=torch.full_like(batch.moments, NAN))
            take_step(session, batch, step)

        monkeypatch.setattr(trainer, "take_step", poisoned)

    return poison


def go(out: Path, **changes: object) -> Path:
    return run(out, GUARDED, **changes)


def events(run: Path) -> list[dict]:
    return [line for line in read_metrics(run / "metrics.jsonl") if "event" in line]


def steps(run: Path) -> list[int]:
    return [step for _, step in logged(run, "loss", "step")]


# -- runs ------------------------------------------------------------------------------------------


def test_a_skipped_step_changes_no_weights(poison, tmp_path):
    clean = go(tmp_path / "clean", steps=4)
    poison({4})
    out = go(tmp_path / "run", steps=5, ckpt_every=1)
    stored = [
        load_file(next(checkpoint.glob("state/*.safetensors")))
        for checkpoint in (latest_checkpoint(clean), *checkpoints(out)[-2:])
    ]
    trained = [
        {k: v for k, v in tensors.items() if k.startswith(("network.", "optimizer."))}
        for tensors in stored
    ]
    before, last, skipped = trained
    assert differing(before, last) == []
    assert {name.rsplit(".", 1)[1] for name in differing(last, skipped)} <= {"step"}
    assert all(
        t.isfinite().all() for c in checkpoints(out) for t in load_file(find_weights(c)).values()
    )
    reason = "loss or gradient is not finite"
    assert events(out) == [{"step": 5, "event": "skipped", "reason": reason}]
    assert steps(out) == [1, 2, 3, 4]


def test_the_run_continues_after_skipped_steps(poison, tmp_path):
    poison({3, 4, 11})
    out = go(tmp_path / "run")
    assert [event["step"] for event in events(out)] == [4, 5, 12]
    assert checkpoint_step(latest_checkpoint(out)) == 30


def test_many_in_a_row_roll_back_to_the_last_checkpoint_with_other_data(poison, tmp_path):
    poison(set(range(12, 16)))  # steps 13 to 16; checked at 10 and 15
    out = go(tmp_path / "run")
    rollbacks = [(e["step"], e["to"]) for e in events(out) if e["event"] == "rollback"]
    assert rollbacks == [(15, 10)]
    assert steps(out) == [*range(1, 11), *range(12, 31)]  # step 11 takes batch 15, which is NaN too
    assert checkpoint_step(latest_checkpoint(out)) == 30


@pytest.mark.parametrize(
    ("positions", "changes", "message", "last"),
    [
        (range(12, 1000), {}, r"4 times from .*step-0000010.*lower --lr", 10),
        (range(2, 1000), {}, "no checkpoint was written yet", None),
        ([12], dict(on_divergence="stop"), "not finite at step 13", 10),
        (
            [12, 13, *range(20, 1000)],
            dict(on_divergence="skip"),
            "3 steps in a row were skipped until step 23",
            20,
        ),
    ],
    ids=["rolled back too often", "no checkpoint", "stop", "skip"],
)
def test_a_run_that_can_not_continue_ends(positions, changes, message, last, poison, tmp_path):
    poison(set(positions))
    with pytest.raises(UserError, match=message):
        go(tmp_path / "run", **changes)
    found = latest_checkpoint(tmp_path / "run")
    assert (found and checkpoint_step(found)) == last
    if changes == dict(on_divergence="skip"):
        assert [event["step"] for event in events(tmp_path / "run")] == [13, 14, 21, 22, 23]


def test_a_run_killed_after_a_rollback_resumes_exactly(poison, tmp_path):
    poison(set(range(12, 16)))
    undisturbed = go(tmp_path / "undisturbed")
    out = tmp_path / "run"
    for last in (11, 14, 18, 30):  # ends before, in and after the NaNs
        go(out, steps=last, resume="auto")
        if last % 5:
            # A killed run has no checkpoint of its last step.
            shutil.rmtree(latest_checkpoint(out))
    assert differing(*(load_file(find_weights(one)) for one in (undisturbed, out))) == []
    assert logged(out, "loss", "step") == logged(undisturbed, "loss", "step")
    for one in (undisturbed, out):
        assert [event["event"] for event in events(one)] == ["rollback", "skipped"]


def train_with_one_bad_rank(ranks: Ranks, root: Path) -> None:
    """NaN in the data of rank 1 alone."""
    SIZES["Ti"] = SMALLER
    take_step = trainer.take_step

    def poisoned(session, batch, step):
        if step == 3 and ranks.rank == 1:
            batch = batch._replace(moments=batch.moments * NAN)
        take_step(session, batch, step)

    trainer.take_step = poisoned
    train(dataclasses.replace(GUARDED, out=root / "run", steps=6), ranks)


def test_ranks_skip_the_same_steps(tmp_path):
    forked.run(2, train_with_one_bad_rank, tmp_path)
    assert [event["step"] for event in events(tmp_path / "run")] == [3]
    assert checkpoint_step(latest_checkpoint(tmp_path / "run")) == 6


# -- the guard -------------------------------------------------------------------------------------


def test_spikes_are_found_by_mean_and_deviation():
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


@pytest.mark.parametrize(
    ("spike", "seen", "expected"), [(5.0, 99, 0), (5.0, 110, 1), (0.0, 110, 0)]
)
def test_a_spike_needs_a_hundred_steps_and_the_flag(spike, seen, expected):
    guard = SpikeGuard(spike, CPU)
    for step in range(seen):
        guard.update(step, torch.tensor(1 + step % 2 / 10), torch.tensor(1.0))
    assert guard.update(seen, torch.tensor(50.0), torch.tensor(1.0)) == expected
    assert int(guard.streak) == expected


def test_skipped_steps_are_returned_once_and_in_order():
    guard = SpikeGuard(0.0, CPU)
    for step in range(8, 15):
        loss = float("inf") if step in (9, 12) else 1.0
        guard.update(step, torch.tensor(loss), torch.tensor(1.0))
    assert [one.step for one in guard.take_skipped()] == [9, 12]
    assert guard.take_skipped() == []
