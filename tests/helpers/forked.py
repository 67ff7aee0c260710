"""Ranks as real processes with gloo between them, forked from one that has imported torch."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "dit.cli",
    "dit.commands.train",
    "torch.utils.tensorboard",
    "sklearn.datasets",
    "pytest",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.utils.flop_counter",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
]
CONTEXT.set_forkserver_preload(PRELOADED)


def start(world: int, work: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Start `work(ranks, *args)` on `world` ranks."""
    port = free_port()
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, world, port, work, args)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def run(world: int, work: Callable[..., None], *args: Any) -> None:
    """Run `work(ranks, *args)` on `world` ranks; all must exit with 0."""
    processes = start(world, work, *args)
    for process in processes:
        process.join(240)

    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world, codes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
    # after the environment is set, which torch reads
    import torch
    from helpers.quicker import make_starts_quicker

    from dit.distributed.ranks import ranks

    make_starts_quicker()
    torch.set_num_threads(1)
    with ranks() as joined:
        work(joined, *args)
