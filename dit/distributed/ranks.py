"""The processes of a run: their devices, what they exchange, and how they find each other."""

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist

from dit.distributed.device import choose_device
from dit.distributed.launcher import Launch, read_launch
from dit.errors import UserError
from dit.utils.files import LOCK, open_lock
from dit.utils.outputs import create_folder
from dit.utils.system import lock_file

Value = TypeVar("Value")

TIMEOUT = timedelta(hours=12)  # of communication: rank 0 scores while the others wait
MEETING = timedelta(minutes=10)  # in which all ranks must have started


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; one process alone is rank 0 of 1."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None  # to communicate in; the default one unless given
    store: dist.Store | None = None  # torchrun's, which outlives ranks that it restarts
    generation: str = ""  # prefix in the store, of the ranks since the last restart

    def on_cpu(self) -> "Ranks":
        """Return the same ranks in a group of their own, for a thread that communicates."""
        group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if self.world > 1 else None
        return Ranks(self.rank, self.world, torch.device("cpu"), group)

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which prints, and writes what is written once."""
        return self.rank == 0

    def say(self, notes: Iterable[str], kind: str = "note") -> None:
        """Print on rank 0 what the user should know of."""
        if self.main:
            for text in notes:
                print(f"{kind}: {text}", file=sys.stderr, flush=True)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier(self.group)

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's `value`, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather_objects(self, value: Value) -> list[Value]:
        """Return each rank's `value`, on every rank."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value, group=self.group)
        return box

    def raise_together(self, error: BaseException | None) -> None:
        """Raise on all ranks if any has an error: its own, or the first of another."""
        errors = self.gather_objects(error and _sendable_error(error))
        failed = [one for one in errors if one is not None]
        if failed:
            raise error or failed[0]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` over ranks in place; return them."""
        if self.world > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Replace `values` by their largest over ranks; return them."""
        if self.world > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, self.group)
        return values

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a value over ranks; the value itself stays."""
        return self.sum(value.clone()) / self.world

    def min(self, values: torch.Tensor) -> torch.Tensor:
        """Return the smallest of `values` over ranks."""
        return -self.max(-values)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` [n, ...] of all ranks, in their order: [world * n, ...]."""
        # Each rank fills its own row; the others are 0 there.
        rows = values.new_zeros(self.world, *values.shape)
        rows[self.rank] = values
        return self.sum(rows).flatten(0, 1)

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Run `work` on rank 0; return its result, or raise its error, on every rank."""
        value, error = None, None
        if self.main:
            try:
                value = work()
            except Exception as raised:
                error = raised
        value, sent = self.broadcast((value, error and _sendable_error(error)))
        if sent:
            raise error or sent
        return value  # type: ignore[return-value]

    def note(self, key: str, value: str) -> None:
        """Leave a note for the ranks that replace these if torchrun restarts them."""
        if self.main and self.store:
            self.store.set(key, f"{self.generation} {value}")

    def recall(self, key: str) -> str | None:
        """Return the note of the ranks that these replace; None if there is none."""
        if self.store is None:
            return None
        generation, value = self.generation, None
        if self.main and self.store.check([key]):
            generation, value = self.store.get(key).decode().split(" ", 1)
        return self.broadcast(None if generation == self.generation else value)

    @contextmanager
    def all_cores(self) -> Iterator[None]:
        """Give rank 0 all cores while the others wait: torchrun leaves each rank one thread."""
        threads = torch.get_num_threads()
        if self.main and self.world > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
            torch.set_num_threads(_usable_cores())
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    @contextmanager
    def lock_folder(self, folder: Path) -> Iterator[None]:
        """Lock a folder against other processes; the lock ends with the process."""
        descriptor = self.on_main(lambda: _lock(folder))
        try:
            yield
        finally:
            if self.main:
                os.close(descriptor)


def _usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lock(folder: Path) -> int:
    """Return the descriptor of a folder's lock, which is held until it is closed."""
    create_folder(folder)
    descriptor = open_lock(folder / LOCK)
    try:
        lock_file(descriptor)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise UserError(
                f"{folder} cannot be locked ({error.strerror})",
                "a file system with locks",
                "choose another --out",
            ) from None
        raise UserError(
            f"another process is at work in {folder}",
            "a folder for each",
            "wait for it, or pass another --out",
        ) from None
    return descriptor


def _sendable_error(error: BaseException) -> BaseException:
    """Return the error, or one of a kind that `dit.cli` reports if it cannot be pickled."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its attributes raise
        if isinstance(error, UserError):
            return UserError(error.given, error.expected, error.do)
        if isinstance(error, OSError):
            return OSError(error.errno, error.strerror or str(error))
        return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the process group of torchrun (nccl on CUDA, gloo on CPU); alone without torchrun."""
    launch = read_launch()
    device = choose_device(launch)
    cuda = device.type == "cuda"
    if launch.world == 1 and not launch.restarts:
        yield Ranks(device=device)
        return

    store, generation = _meet(launch)
    if launch.world == 1:
        yield Ranks(device=device, store=store, generation=generation)
        return
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        timeout=TIMEOUT,
        rank=launch.rank,
        world_size=launch.world,
        store=dist.PrefixStore(generation, store),
        device_id=device if cuda else None,
    )
    yield Ranks(launch.rank, launch.world, device, store=store, generation=generation)
    dist.destroy_process_group()  # not after an error: it would wait for ranks that have left


def _meet(launch: Launch) -> tuple[dist.Store, str]:
    """Return the store that the ranks share, and their prefix in it, once all are there."""
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=MEETING))
        generation = _join_generation(store, launch.rank, launch.world)
    except (dist.DistError, TimeoutError) as error:
        raise UserError(
            f"rank {launch.rank} did not meet the other ranks at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({_first_line(error)})",
            f"all {launch.world} ranks within {MEETING.total_seconds() / 60:g} minutes",
            "start them together with torchrun, or unset WORLD_SIZE and RANK to run alone",
        ) from None
    store.set_timeout(TIMEOUT)
    return store, generation


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _join_generation(store: dist.Store, rank: int, world: int) -> str:
    """Return a prefix in the store for the ranks that run now.

    torchrun's store outlives ranks and keeps the addresses of dead ones, and each node counts
    restarts for itself. So each rank calls with a token of its own, and rank 0 answers all calls
    with the prefix, until every rank has confirmed it.
    """
    # The token distinguishes a current call from that of a dead rank.
    if rank:
        token = uuid4().hex
        store.set(f"call-{rank}", token)
        generation = store.get(f"answer-{token}").decode()
        store.set(f"{generation}-has-{rank}", "")
        return generation

    generation = f"start-{store.add('starts', 1)}"
    missing = set(range(1, world))
    until = time.monotonic() + MEETING.total_seconds()
    while missing:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(missing)} of {world} ranks are missing")
        for other in missing:
            if store.check([f"call-{other}"]):
                token = store.get(f"call-{other}").decode()
                store.set(f"answer-{token}", generation)
        time.sleep(0.02)
        missing = {other for other in missing if not store.check([f"{generation}-has-{other}"])}
    return generation
