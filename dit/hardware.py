"""Where the work runs: ranks, devices, precision."""

import fcntl
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist

from dit.errors import UserError
from dit.utils.files import LOCK, make_folder

Value = TypeVar("Value")

CGROUPS = {"": ("sys/fs/cgroup", "memory.max"), "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes")}  # v2, v1
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
                    raise UserError(f"another process is at work in {folder}", "a folder for each",
                                    "wait for it, or pass another --out") from None

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
        raise UserError(f"rank {local} of this machine, which has {torch.cuda.device_count()} GPUs", "one rank a GPU",
                        f"pass torchrun --nproc-per-node {torch.cuda.device_count()}")
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
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE, rank=rank, world_size=world,
                            store=dist.PrefixStore(place, store), device_id=device if cuda else None)
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


def device_kind(device: torch.device) -> str:
    """What arithmetic depends on: `cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def sendable(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In memory that a GPU fetches from by itself, so that nothing waits for it."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def memory_of(device: torch.device) -> int:
    """Bytes that a rank may have: its GPU's, or an equal part of the machine's for each rank on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return main_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def main_memory(root: Path = Path("/")) -> int:
    """Bytes of the machine's memory, or what a container or a job may have of it."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Bytes that the control groups of this process allow, and those around them."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in CGROUPS:
            mount, name = CGROUPS[controllers]
            own = root / mount / path.lstrip("/")
            said = [(group / name).read_text().strip() for group in (own, *own.parents) if (group / name).exists()]
            yield from (int(limit) for limit in said if limit != "max")


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run faster than float32 ones here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def arithmetic(device: torch.device, precision: str) -> str:
    """What a precision means here: itself, or of `auto` bf16 where it is fast, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if fast_bf16(device) else "fp32"


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether networks compute in bfloat16 here; with `fp8`, all but what is float8."""
    return arithmetic(device, precision) != "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision, unless `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, precision))


def choose_attention(network: torch.nn.Module, device: torch.device, precision: str) -> None:
    """Fused attention, but on CPU in bf16, where plain attention trains 1.5 to 5 times faster."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = not (device.type == "cpu" and uses_bf16(device, precision))  # type: ignore[assignment]


def versions(*libraries: str) -> dict[str, str | None]:
    """Versions of installed libraries; None of those that are not."""
    return {name: _version(name) for name in libraries}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
