"""Ends a run that hangs, and says which rank does; tells of ranks that are lost."""

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
BEAT = 2.0  # seconds between signs of life
LISTEN = 3  # beats for which the others are listened to
HEARD = 30  # beats after which the others are no longer waited for
PLACES = (
    "waiting for a batch",
    "computing",
    "writing a checkpoint",
    "between steps",
)  # in the order of a step


class Sign(NamedTuple):
    """Of life: where a rank's loop is, and how often its watchdog has spoken."""

    step: int
    place: int
    beats: int


class Verdict(NamedTuple):
    """Which ranks hold up a run, in words, and how many ranks are able to hear that."""

    said: str
    hearers: int = 1


class Watchdog:
    """A thread on each rank that knows where the loop is, and tells the others.

    Where a loop stays in one place for longer than `patience` seconds, its watchdog asks for all ranks' signs twice: a
    rank that has stopped to speak is dead or frozen, else the one that is furthest behind keeps the others waiting.
    """

    def __init__(self, ranks: Ranks, patience: float):
        self.ranks, self.patience = ranks, patience
        self._place, self._inside = (
            (0, len(PLACES) - 1),
            False,
        )  # step and place; whether it is watched now
        self._since, self._beats, self._over = time.monotonic(), 0, threading.Event()
        self._store, self.ending = _store(ranks), False

    @property
    def step(self) -> int:
        """That the loop is at."""
        return self._place[0]

    @contextmanager
    def at(self, step: int, place: str) -> Iterator[None]:
        """The loop is there until the block ends."""
        self._since, self._place, self._inside = time.monotonic(), (step, PLACES.index(place)), True
        try:
            yield
        finally:
            self._place, self._inside = (step, len(PLACES) - 1), False

    def watch(self) -> None:
        """The thread."""
        self._speak()
        while not self._over.wait(BEAT):
            self._speak()
            if self._inside and time.monotonic() - self._since > self.patience:
                self._end()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()

    def _speak(self) -> None:
        self._beats += 1
        if self._store:
            with suppress(dist.DistError):  # rank 0 has ended, and its store with it
                self._store.set(
                    f"sign-{self.ranks.rank}", ",".join(map(str, (*self._place, self._beats)))
                )

    def _signs(self) -> list[Sign]:
        if not self._store:
            return [Sign(*self._place, self._beats)]
        keys = [f"sign-{rank}" for rank in range(self.ranks.world)]
        return [Sign(*map(int, sign.decode().split(","))) for sign in self._store.multi_get(keys)]

    def _end(self) -> None:
        """Say who is to blame and where this process hangs, and end it, for its main thread can not."""
        since = self._since
        try:
            found = self._blame(since)
        except dist.DistError:
            said = (
                f"nothing has moved for {self.patience:g} s in step {self._place[0]} on rank {self.ranks.rank}, "
                "and the other ranks can not be heard; continue with --resume"
            )
            found = Verdict(said, self.ranks.world)
        if self._since != since or not self._inside:
            return  # it went on meanwhile
        self.ending = True
        print(f"error: {found.said}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr)
        self._wait_for_the_others(found.hearers)
        os._exit(HUNG)

    def _wait_for_the_others(self, hearers: int) -> None:
        """Until they have heard the verdict: wires end with this rank, and without torchrun the store with rank 0."""
        if self._store:
            with suppress(dist.DistError):
                heard = self._store.add("heard", 1)
                for _ in range(HEARD):
                    if heard >= hearers:
                        break
                    time.sleep(BEAT)
                    heard = self._store.add("heard", 0)

    def _blame(self, since: float) -> Verdict:
        """The verdict, of the first rank that comes to one and has not moved since."""
        if self._store and self._store.check(["verdict"]):
            return _received(self._store.get("verdict"))
        before = self._signs()
        for _ in range(LISTEN):
            time.sleep(BEAT)
            self._speak()
        found = verdict(before, self._signs(), self.patience)
        if not self._store or self._since != since:
            return found
        return _received(self._store.compare_set("verdict", "", f"{found.hearers} {found.said}"))


def _received(verdict: bytes) -> Verdict:
    hearers, said = verdict.decode().split(" ", 1)
    return Verdict(said, int(hearers))


def verdict(before: list[Sign], after: list[Sign], patience: float) -> Verdict:
    """By two signs of life of each rank. One that is silent, or at work where it is not watched, will not hear it."""
    silent = [
        rank
        for rank, (old, new) in enumerate(zip(before, after, strict=True))
        if old.beats == new.beats
    ]
    behind = min((sign.step, sign.place) for sign in after)
    late = [rank for rank, sign in enumerate(after) if (sign.step, sign.place) == behind]
    blamed = silent or late
    hearers = sum(
        rank not in silent and PLACES[sign.place] != "between steps"
        for rank, sign in enumerate(after)
    )
    rank, verb = ("rank", "is") if len(blamed) == 1 else ("ranks", "are")
    what = "without a sign of life" if silent else PLACES[behind[1]]
    return Verdict(
        f"nothing has moved for {patience:g} s: {rank} {', '.join(map(str, blamed))} of {len(after)} {verb} "
        f"{what} in step {after[blamed[0]].step}; "
        "expected a step within --timeout; look at that rank's machine, and continue with --resume",
        hearers,
    )


def _store(ranks: Ranks) -> dist.Store | None:
    """Where ranks leave their signs; a client of its own, for the loop's may be blocked."""
    if ranks.world == 1 or not ranks.store:
        return None
    store = ranks.store.clone()
    store.set_timeout(timedelta(seconds=60))
    return dist.PrefixStore(f"{ranks.place}-watchdog", store)


@contextmanager
def watchdog(ranks: Ranks, minutes: float) -> Iterator[Watchdog]:
    """A watchdog at work inside the block; 0 minutes: one that never bites.

    Raises:
        PeerLost: another rank has ended, and this one noticed in talking to it.
    """
    dog = Watchdog(ranks, 60 * minutes)
    thread = threading.Thread(target=dog.watch, daemon=True)
    if minutes:
        thread.start()
    try:
        yield dog
    except RuntimeError as error:
        if ranks.world == 1 or not _of_the_wire(error):
            raise
        if dog.ending:
            thread.join()  # it has said why, and ends this process
        lost = f"rank {ranks.rank} of {ranks.world} lost another rank in step {dog.step} ({cause(error)})"
        raise PeerLost(
            f"{lost}; expected all ranks to go on; look for what that rank said last, and continue with "
            "--resume"
        ) from error
    finally:
        dog.close()


def cause(error: RuntimeError) -> str:
    """What gloo says of a connection, without the place in its source code and its good wishes."""
    return re.sub(r"\[\S*/\S*:\d+\]|GLHF!\W*", "", str(error).splitlines()[0]).strip(" .")


def _of_the_wire(error: RuntimeError) -> bool:
    """Whether ranks could not talk: gloo has no class of errors of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
