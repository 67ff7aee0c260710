"""A run that hangs is ended, and the rank to blame is named."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks import forked
from dit.hardware import Ranks
from dit.training.watchdog import HUNG, Sign, cause, verdict, watchdog


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


@pytest.mark.parametrize("said", [
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711",
    "[../gloo/pair.cc:5] Connection closed by peer [127.0.0.1]:4711. GLHF! 🏖️",
    "[../gloo/pair.cc:5] GLHF! 🏖️ Connection closed by peer [127.0.0.1]:4711\nand more",
])
def test_of_a_lost_connection_only_the_cause_is_told(said):
    assert cause(RuntimeError(said)) == "Connection closed by peer [127.0.0.1]:4711"


def hang(ranks: Ranks, log: Path, how: str) -> None:
    """Rank 1 reads for ever, or is frozen; the others wait for it."""
    sys.stderr = (log / f"{ranks.rank}.txt").open("w")
    with watchdog(ranks, 3 / 60) as dog:
        with dog.at(4, "computing"):
            time.sleep(2.5)  # leaves a sign
        if ranks.rank == 1 and how == "frozen":
            with dog.at(5, "computing"):
                time.sleep(2.5)
                os.kill(os.getpid(), signal.SIGSTOP)
        with dog.at(5, "waiting for a batch" if ranks.rank == 1 else "computing"):
            time.sleep(600)


@pytest.mark.parametrize(("how", "named"), [("reading", "rank 1 of 3 is waiting for a batch in step 5"),
                                            pytest.param("frozen", "rank 1 of 3 is without a sign of life in step 5",
                                                         marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named_by_the_others(how, named, tmp_path):
    processes = forked.start(3, hang, tmp_path, how)
    try:
        for rank in (0, 2):
            processes[rank].join(60)
            assert processes[rank].exitcode == HUNG
            assert named in (tmp_path / f"{rank}.txt").read_text()
    finally:
        for process in processes:
            process.kill()


def test_a_slow_step_is_no_hang():
    with watchdog(Ranks(), 4 / 60) as dog:
        for step in range(3):
            with dog.at(step, "computing"):
                time.sleep(2.2)
