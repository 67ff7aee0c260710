"""Ranks as processes that need not import torch each: real ones, with gloo between them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "dit.cli",
        "dit.training.trainer",
        "torch.utils.tensorboard",
        "sklearn.datasets",
        "pytest",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
        "torch.utils.flop_counter",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ]
)


def start(world: int, work: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Begin `work(ranks, *args)` on so many ranks."""
    port = free_port()
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, world, port, work, args)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def run(world: int, work: Callable[..., None], *args: Any) -> None:
    """The same, to its end, which has to be a good one."""
    processes = start(world, work, *args)
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world, codes


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _rank(
    rank: int, world: int, port: int, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    import torch

    from dit.distributed.ranks import ranks

    torch.set_num_threads(1)
    with ranks() as joined:
        work(joined, *args)
