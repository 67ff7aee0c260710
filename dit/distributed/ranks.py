"""Where the work runs: ranks, devices, precision."""

import fcntl
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist

from dit.errors import UserError
from dit.utils.files import LOCK, make_folder

Value = TypeVar("Value")

PATIENCE = timedelta(hours=12)  # between ranks: rank 0 computes scores while the others wait


@dataclass(frozen=True)
class Ranks:
    """This process among its peers; one process alone is rank 0 of 1."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None  # that they talk in; the one of all work unless given
    store: dist.Store | None = None  # torchrun's, which outlives ranks that it starts again
    place: str = ""  # in the store, of these ranks alone

    def aside(self) -> "Ranks":
        """The same ranks on their CPUs, in a group of their own, for a thread that talks while the others compute."""
        group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None
        return Ranks(self.rank, self.world, torch.device("cpu"), group)

    @property
    def main(self) -> bool:
        """Whether this rank prints, draws and writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier(self.group)

    def share(self, value: Value) -> Value:
        """Rank 0's `value`, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def collect(self, value: Value) -> list[Value]:
        """Each rank's `value`, on every rank."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value, group=self.group)
        return box

    def agree(self, error: BaseException | None) -> None:
        """Go on if no rank has an error; else none does, and each raises its own, or the first that another has."""
        failed = [one for one in self.collect(error and _sendable_error(error)) if one is not None]
        if failed:
            raise error or failed[0]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values` over ranks, on every rank."""
        if self.world > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Largest of `values` over ranks, on every rank."""
        if self.world > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, self.group)
        return values

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a value over ranks, on every rank; the value itself stays."""
        return self.total(value.clone()) / self.world

    def minimum(self, values: torch.Tensor) -> torch.Tensor:
        """Smallest of `values` over ranks, on every rank."""
        return -self.maximum(-values)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """`values` [n, ...] of all ranks, one rank after the other, on every rank: [world * n, ...]."""
        rows = values.new_zeros(self.world, *values.shape)
        rows[self.rank] = values
        return self.total(rows).flatten(0, 1)

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Rank 0's result of `work`, or its error, on every rank."""
        value, failed = None, None
        if self.main:
            try:
                value = work()
            except Exception as error:
                failed = error
        value, told = self.share((value, failed and _sendable_error(failed)))
        if told:
            raise failed or told
        return value  # type: ignore[return-value]

    def note(self, key: str, value: str) -> None:
        """Let those know who will stand in for these ranks, if torchrun has to start them again."""
        if self.main and self.store:
            self.store.set(key, f"{self.place} {value}")

    def recall(self, key: str) -> str | None:
        """What was noted by the ranks in whose stead torchrun started these; None if nothing was."""
        if self.store is None:
            return None
        place, value = self.place, None
        if self.main and self.store.check([key]):
            place, value = self.store.get(key).decode().split(" ", 1)
        return self.share(None if place == self.place else value)

    @contextmanager
    def whole_machine(self) -> Iterator[None]:
        """All cores for rank 0, which works while the others wait: torchrun leaves each rank one thread."""
        threads = torch.get_num_threads()
        if self.main and self.world > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    @contextmanager
    def alone_in(self, folder: Path) -> Iterator[None]:
        """Keep other processes out of a folder, by a lock of the system, which dies with the process.

        Raises:
            UserError: one is at work there, or the folder can not be made.
        """
        make_folder(folder)
        with (folder / LOCK).open("w") as file:

            def lock() -> None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"another process is at work in {folder}",
                        "a folder for each",
                        "wait for it, or pass another --out",
                    ) from None

            self.on_main(lock)
            yield


def _sendable_error(error: BaseException) -> BaseException:
    """The error as another rank gets it: where it can not be pickled, one of the kinds that `cli` knows."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its parts raise
        if isinstance(error, UserError):
            return UserError(error.given, error.expected, error.do)
        if isinstance(error, OSError):
            return OSError(error.errno, error.strerror or str(error))
        return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the process group that torchrun announces (nccl on CUDA, gloo on CPU); alone without torchrun."""
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"rank {local} of this machine, which has {torch.cuda.device_count()} GPUs",
            "one rank a GPU",
            f"pass torchrun --nproc-per-node {torch.cuda.device_count()}",
        )
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks(device=device)
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    place = _meet(store, rank, world)
    if world == 1:
        yield Ranks(device=device, store=store, place=place)
        return
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        timeout=PATIENCE,
        rank=rank,
        world_size=world,
        store=dist.PrefixStore(place, store),
        device_id=device if cuda else None,
    )
    yield Ranks(rank, world, device, store=store, place=place)
    dist.destroy_process_group()  # not after an error: it would wait for ranks that are elsewhere


def _meet(store: dist.Store, rank: int, world: int) -> str:
    """A place in the store for the ranks that are alive now.

    torchrun's store outlives ranks and keeps the addresses of dead ones, and of several nodes each counts restarts by
    itself. So each rank calls with a word of its own, and rank 0 tells all who call where it is, until all have come.
    """
    if rank:
        word = uuid4().hex
        store.set(f"call-{rank}", word)
        place = store.get(f"answer-{word}").decode()
        store.set(f"{place}-has-{rank}", "")
        return place
    place, awaited = f"start-{store.add('starts', 1)}", set(range(1, world))
    while awaited:
        for other in awaited:
            if store.check([f"call-{other}"]):
                store.set(f"answer-{store.get(f'call-{other}').decode()}", place)
        time.sleep(0.02)
        awaited = {other for other in awaited if not store.check([f"{place}-has-{other}"])}
    return place
