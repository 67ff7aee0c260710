"""A run that hangs is ended, and the rank that holds it up is named."""

import dataclasses
import os
import re
import signal
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import forked
from helpers.kills import RUN, train_small
from torch.distributed import HashStore

from dit.distributed.ranks import Ranks
from dit.errors import PeerLost
from dit.training import batches
from dit.training.resilience import watchdog as module
from dit.training.resilience.watchdog import HUNG, Heartbeat, Watchdog, find_verdict, watchdog

TIMEOUT = 3  # seconds
SHORT = 0.2  # seconds between heartbeats
WAITING, COMPUTING, UNWATCHED = 0, 1, 3  # sections


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ([(7, COMPUTING), (7, WAITING)], "rank 1 of 2 is waiting for a batch in step 7"),
        ([(7, COMPUTING), (6, COMPUTING)], "rank 1 of 2 is computing in step 6"),
        ([(6, UNWATCHED), (7, COMPUTING)], "rank 0 of 2 is between steps in step 6"),
        ([(7, COMPUTING), (7, COMPUTING)], "ranks 0, 1 of 2 are computing in step 7"),
    ],
)
def test_the_rank_that_is_furthest_behind_is_named(ranks, named):
    before, after = ([Heartbeat(*rank, sent) for rank in ranks] for sent in (3, 6))
    assert named in find_verdict(before, after, 60).message


def test_a_silent_rank_is_named_first():
    before = [Heartbeat(7, COMPUTING, 3)] * 3
    after = [before[0], Heartbeat(6, COMPUTING, 6), Heartbeat(7, COMPUTING, 6)]
    named = "rank 0 of 3 is without a sign of life in step 7"
    assert named in find_verdict(before, after, 60).message


@pytest.mark.parametrize(
    ("other", "last"),
    [
        ("computing", 9),  # the beat at which it ends
        ("between steps", module.SILENT_AFTER),
        ("frozen", module.SILENT_AFTER),
        ("computing on", module.SILENT_AFTER + module.WAIT_FOR_OTHERS),
    ],
)
def test_a_rank_ends_once_all_that_can_have_read_the_verdict(other, last, monkeypatch, capfd):
    store, ended, beats = HashStore(), [], []
    dogs = [Watchdog(Ranks(rank, 2, store=store), 60) for rank in range(2)]

    def leave(code: int) -> None:
        ended.append(code)
        raise SystemExit

    def beat(seconds: float) -> None:
        """What rank 1 does meanwhile: its timeout ends some heartbeats later."""
        beats.append(seconds)
        if other != "frozen":
            dogs[1]._send()
        if other == "computing" and len(beats) == last:
            with suppress(SystemExit):
                dogs[1]._end_run()

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=beat))
    monkeypatch.setattr(os, "_exit", leave)
    with (
        dogs[0].at(7, "computing"),
        dogs[1].at(7, "computing") if "computing" in other else nullcontext(),
    ):
        for dog in dogs:
            dog._send()
        with pytest.raises(SystemExit):
            dogs[0]._end_run()
    assert (len(beats), len(ended)) == (last, 2 if other == "computing" else 1)
    errors = re.findall("error: .*", capfd.readouterr().err)
    assert errors == errors[:1] * len(ended), "one verdict"


def test_a_connection_that_ends_during_a_verdict_is_no_lost_peer(monkeypatch):
    """The process ends with the verdict before the error is raised."""
    printed, done = threading.Event(), []

    def lose() -> None:
        with watchdog(Ranks(0, 2), 1e-4) as dog:
            monkeypatch.setattr(os, "_exit", lambda code: (done.append(code), dog.close()))
            with dog.at(7, "computing"):
                assert printed.wait(30)
                raise RuntimeError("gloo: Connection closed by peer")

    monkeypatch.setattr(module, "INTERVAL", 0.01)
    monkeypatch.setattr(Watchdog, "_wait_for_readers", lambda *_: (printed.set(), time.sleep(0.1)))
    with pytest.raises(PeerLost):
        lose()
    assert done == [HUNG]


def hang(ranks: Ranks, folder: Path, how: str) -> None:
    """Train; rank 1 waits for the data of step 5 without end, or is frozen."""
    read = batches.read_batch

    def never(stream: batches.DataStream, position: int) -> batches.Batch:
        if ranks.rank == 1 and position == 4:  # counted from 0
            time.sleep(5 * SHORT)  # sends a heartbeat of the wait
            if how == "frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        return read(stream, position)

    sys.stderr = (folder / f"{ranks.rank}.txt").open("w")
    module.INTERVAL, batches.read_batch = SHORT, never
    train_small(
        ranks,
        dataclasses.replace(
            RUN, global_batch_size=12, steps=8, timeout=TIMEOUT / 60, out=folder / "run"
        ),
    )


@pytest.mark.parametrize(
    ("how", "ended", "named"),
    [
        ("reading", (0, 1, 2), "rank 1 of 3 is waiting for a batch in step 5"),
        pytest.param(
            "frozen",
            (0, 2),
            "rank 1 of 3 is without a sign of life in step 5",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_that_hangs_is_ended_and_the_rank_is_named(how, ended, named, tmp_path):
    processes = forked.start(3, hang, tmp_path, how)
    try:
        for rank in ended:
            processes[rank].join(60)
            assert processes[rank].exitcode == HUNG == 4
            error = f"error: nothing has moved for {TIMEOUT} s: {named}; expected a step within"
            printed = (tmp_path / f"{rank}.txt").read_text()
            assert error in printed
            place = "in _next" if rank == 1 else "in _agree"
            assert place in printed, "the line where it hangs"
    finally:
        for process in processes:
            process.kill()


def test_slow_steps_are_no_hang(monkeypatch):
    ended, sent = [], []
    send = Watchdog._send
    monkeypatch.setattr(module, "INTERVAL", SHORT)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(Watchdog, "_send", lambda dog: (sent.append(dog.step), send(dog)))
    with watchdog(Ranks(), 2 / 60) as dog:
        for step in range(2):
            with dog.at(step, "computing"):
                time.sleep(1.2)
    assert ended == [], "each step is quicker than the timeout, both together are not"
    assert {0, 1} <= set(sent), "it ran meanwhile"
