"""A run that hangs is ended, and the rank to blame is named."""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks import forked
from benchmarks.equality import RUN, train_small
from dit.hardware import Ranks
from dit.training import batches
from dit.training import watchdog as module
from dit.training.job import Job
from dit.training.watchdog import HUNG, Sign, verdict, watchdog

PATIENCE = 3  # seconds
SHORT = 0.2  # seconds between signs of life


@pytest.mark.parametrize(("before", "after", "named"), [
    ([Sign(7, 1, 3), Sign(7, 0, 3)], [Sign(7, 1, 6), Sign(7, 0, 6)], "rank 1 of 2 is waiting for a batch in step 7"),
    ([Sign(7, 1, 3), Sign(6, 1, 3)], [Sign(7, 1, 6), Sign(6, 1, 6)], "rank 1 of 2 is computing in step 6"),
    ([Sign(7, 1, 3), Sign(7, 1, 3), Sign(7, 1, 3)], [Sign(7, 1, 3), Sign(7, 1, 6), Sign(7, 1, 6)],
     "rank 0 of 3 is without a sign of life in step 7"),
    ([Sign(6, 3, 3), Sign(7, 1, 3)], [Sign(6, 3, 6), Sign(7, 1, 6)], "rank 0 of 2 is between steps in step 6"),
    ([Sign(7, 1, 3), Sign(7, 1, 3)], [Sign(7, 1, 6), Sign(7, 1, 6)], "ranks 0, 1 of 2 are computing in step 7"),
])
def test_the_rank_that_is_silent_or_behind_is_to_blame(before, after, named):
    assert named in verdict(before, after, 60)


def hang(ranks: Ranks, folder: Path, how: str) -> None:
    """Train; the data of step 5 never come on rank 1, which waits for them, or is frozen."""
    draw = batches.draw_batch

    def never(job: Job, step: int) -> batches.Batch:
        if ranks.rank == 1 and step == 4:  # counted from 0
            time.sleep(5 * SHORT)  # leaves a sign of the wait
            if how == "frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        return draw(job, step)

    sys.stderr = (folder / f"{ranks.rank}.txt").open("w")
    module.BEAT, batches.draw_batch = SHORT, never
    train_small(ranks, dataclasses.replace(RUN, global_batch_size=12, steps=8, timeout=PATIENCE / 60,
                                           out=folder / "run"))


@pytest.mark.parametrize(("how", "ended", "named"), [
    ("reading", (0, 1, 2), "rank 1 of 3 is waiting for a batch in step 5"),
    pytest.param("frozen", (0, 2), "rank 1 of 3 is without a sign of life in step 5", marks=pytest.mark.slow)])
def test_training_that_hangs_is_ended_and_the_rank_to_blame_named(how, ended, named, tmp_path):
    processes = forked.start(3, hang, tmp_path, how)
    try:
        for rank in ended:
            processes[rank].join(60)
            assert processes[rank].exitcode == HUNG == 4
            said = (tmp_path / f"{rank}.txt").read_text()
            assert f"error: nothing has moved for {PATIENCE} s: {named}; expected a step within --timeout" in said
            assert ("in watched" if rank == 1 else "in train_step") in said, "the place where it hangs"
    finally:
        for process in processes:
            process.kill()


def test_a_slow_step_is_no_hang(monkeypatch):
    monkeypatch.setattr(module, "BEAT", SHORT)
    with watchdog(Ranks(), 2 / 60) as dog:
        for step in range(2):
            with dog.at(step, "computing"):
                time.sleep(1.2)
