"""Ends a run that hangs, and reports which rank does; reports ranks that are lost."""

import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from dit.distributed.ranks import Ranks
from dit.errors import PeerLost

HUNG = 4  # exit code
INTERVAL = 2.0  # seconds between heartbeats
SILENT_AFTER = 3  # intervals without a heartbeat that make a rank silent
WAIT_FOR_OTHERS = 30  # intervals, at most, until the other ranks have read the verdict
SECTIONS = ("waiting for a batch", "computing", "writing a checkpoint", "between steps")
UNWATCHED = SECTIONS.index("between steps")  # as while rank 0 scores or samples


class Heartbeat(NamedTuple):
    """Where a rank's loop is, and how many heartbeats it has sent."""

    step: int
    section: int  # index of `SECTIONS`, which are in the order of a step
    sent: int


class Verdict(NamedTuple):
    """Which ranks hold up a run, and how many ranks will read that."""

    message: str
    readers: int = 1


class Watchdog:
    """A thread on each rank that sends heartbeats, and ends the run when its loop hangs.

    When a loop stays in one section for longer than `timeout` seconds, its watchdog reads all
    ranks' heartbeats twice. A rank without a new one is dead or frozen; else the rank that is
    furthest behind holds up the others.
    """

    def __init__(self, ranks: Ranks, timeout: float):
        self.ranks = ranks
        self.timeout = timeout
        self.ending = False
        self._at = (0, UNWATCHED)  # step and section, in one so that both change at once
        self._since = time.monotonic()
        self._sent = 0
        self._closed = threading.Event()
        self._store = _connect(ranks)

    @property
    def step(self) -> int:
        """The step that the loop is at."""
        return self._at[0]

    @property
    def watched(self) -> bool:
        """Whether the loop is in a section that is watched."""
        return self._at[1] != UNWATCHED

    @contextmanager
    def at(self, step: int, section: str) -> Iterator[None]:
        """Watch this section of this step until the block ends."""
        self._since = time.monotonic()
        self._at = (step, SECTIONS.index(section))
        try:
            yield
        finally:
            self._at = (step, UNWATCHED)

    def run(self) -> None:
        """Send heartbeats and watch, until closed; the thread runs this."""
        self._send()
        while not self._closed.wait(INTERVAL):
            self._send()
            if self.watched and time.monotonic() - self._since > self.timeout:
                self._end_run()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _send(self) -> None:
        self._sent += 1
        if self._store:
            with suppress(dist.DistError):  # rank 0 has ended, and its store with it
                text = ",".join(map(str, (*self._at, self._sent)))
                self._store.set(f"heartbeat-{self.ranks.rank}", text)

    def _read_all(self) -> list[Heartbeat]:
        if not self._store:
            return [Heartbeat(*self._at, self._sent)]
        keys = [f"heartbeat-{rank}" for rank in range(self.ranks.world)]
        texts = [value.decode() for value in self._store.multi_get(keys)]
        return [Heartbeat(*map(int, text.split(","))) for text in texts]

    def _end_run(self) -> None:
        """Print the verdict and where this process hangs, and end it; its main thread cannot."""
        since = self._since
        try:
            verdict = self._agree_on_verdict(since)
        except dist.DistError:
            message = (
                f"nothing has moved for {self.timeout:g} s in step {self.step} on rank "
                f"{self.ranks.rank}, and the other ranks do not answer; continue with --resume"
            )
            verdict = Verdict(message, self.ranks.world)
        if self._since != since or not self.watched:
            return  # the loop moved meanwhile

        # The main thread may hang in a call that no exception reaches, so the process exits.
        self.ending = True
        print(f"error: {verdict.message}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr)
        self._wait_for_readers(verdict.readers)
        os._exit(HUNG)

    def _wait_for_readers(self, readers: int) -> None:
        """Wait until the others have the verdict: this rank's connections, or its store, end."""
        if not self._store:
            return
        with suppress(dist.DistError):
            done = self._store.add("readers", 1)
            for _ in range(WAIT_FOR_OTHERS):
                if done >= readers:
                    break
                time.sleep(INTERVAL)
                done = self._store.add("readers", 0)

    def _agree_on_verdict(self, since: float) -> Verdict:
        """Return the verdict of the first rank that reaches one and has not moved since."""
        if self._store and self._store.check(["verdict"]):
            return _parse(self._store.get("verdict"))
        before = self._read_all()
        for _ in range(SILENT_AFTER):
            time.sleep(INTERVAL)
            self._send()
        verdict = find_verdict(before, self._read_all(), self.timeout)
        if not self._store or self._since != since:
            return verdict
        # The first rank to write decides for all, so that they print the same.
        text = f"{verdict.readers} {verdict.message}"
        return _parse(self._store.compare_set("verdict", "", text))


def _parse(text: bytes) -> Verdict:
    readers, message = text.decode().split(" ", 1)
    return Verdict(message, int(readers))


def find_verdict(before: list[Heartbeat], after: list[Heartbeat], timeout: float) -> Verdict:
    """Return the verdict from two heartbeats of each rank.

    Ranks that are silent, or in a section that is not watched, will not read it.
    """
    behind = min((beat.step, beat.section) for beat in after)
    silent, late, watched = [], [], []
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.sent == new.sent:
            silent.append(rank)
        if (new.step, new.section) == behind:
            late.append(rank)
        if new.section != UNWATCHED:
            watched.append(rank)

    # A dead rank explains why the others wait, so it is named first.

    blamed = silent or late
    ranks = "rank" if len(blamed) == 1 else "ranks"
    verb = "is" if len(blamed) == 1 else "are"
    numbers = ", ".join(map(str, blamed))
    what = "without a sign of life" if silent else SECTIONS[behind[1]]
    return Verdict(
        f"nothing has moved for {timeout:g} s: {ranks} {numbers} of {len(after)} {verb} {what} in "
        f"step {after[blamed[0]].step}; expected a step within --timeout; check the machine of "
        f"that rank, and continue with --resume",
        len(set(watched) - set(silent)),
    )


def _connect(ranks: Ranks) -> dist.Store | None:
    """Return a connection to the store of heartbeats; its own, for the loop's may be blocked."""
    if ranks.world == 1 or not ranks.store:
        return None
    store = ranks.store.clone()
    store.set_timeout(timedelta(seconds=60))
    return dist.PrefixStore(f"{ranks.generation}-watchdog", store)


@contextmanager
def watchdog(ranks: Ranks, minutes: float) -> Iterator[Watchdog]:
    """Run a watchdog inside the block; with 0 minutes it never ends the run.

    Raises:
        PeerLost: another rank has ended, which this one noticed in communication.
    """
    dog = Watchdog(ranks, 60 * minutes)
    thread = threading.Thread(target=dog.run, daemon=True)
    if minutes:
        thread.start()
    try:
        yield dog
    except RuntimeError as error:
        if ranks.world == 1 or not _is_communication(error):
            raise
        if dog.ending:
            thread.join()  # it has printed why, and ends this process
        lost = f"rank {ranks.rank} of {ranks.world} lost another rank in step {dog.step}"
        raise PeerLost(
            f"{lost} ({short_cause(error)}); expected all ranks to continue; see the last lines "
            "that rank printed, and continue with --resume"
        ) from error
    finally:
        dog.close()


def short_cause(error: RuntimeError) -> str:
    """Return gloo's description of a connection, without its source line and its greeting."""
    first = str(error).splitlines()[0]
    return re.sub(r"\[\S*/\S*:\d+\]|GLHF!\W*", "", first).strip(" .")


def _is_communication(error: RuntimeError) -> bool:
    """Whether ranks failed to communicate: gloo has no class of errors of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
