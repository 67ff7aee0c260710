"""Runs that are killed at chosen moments, and bitwise comparison of two runs."""

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import forked
from safetensors.torch import load_file

from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.models.sizes import SIZES
from dit.runs.checkpoint_files import checkpoints, latest_checkpoint, verify_checkpoint
from dit.runs.logs import read_metrics

CLOCKS = {"img_per_s", "mfu", "data_wait", "memory_gib"}  # of the log: they vary between runs
RUN = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=16,
    warmup=2,
    sample_every=0,
    ckpt_every=3,
    keep=2,
    log_every=2,
    precision="fp32",
    compile=False,
    resume="auto",
)
Moment = tuple[Callable[[Path], bool] | None, float]


def train_small(ranks: Ranks, config: TrainConfig) -> None:
    """Train a network of two blocks."""
    SIZES["Ti"] = dict(depth=2, hidden_size=64, num_heads=2)
    train(config, ranks)


def writing(run: Path) -> bool:
    """Return whether a checkpoint is being written."""
    return any(run.glob("checkpoints/.step-*"))


def sealing(run: Path) -> bool:
    """Return whether a checkpoint's state and EMA are written but not yet renamed."""
    return any(run.glob("checkpoints/.step-*/ema-*.safetensors"))


def pruning(run: Path) -> bool:
    """Return whether there are more checkpoints than will be kept."""
    return len([*run.glob("checkpoints/step-*")]) > RUN.keep


def moments(number: int) -> list[Moment]:
    """Return random moments: a sign to wait for, if any, then a delay in seconds."""
    dice = random.Random(0)
    signs = dice.choices([None, writing, sealing, pruning], k=number)
    return [(sign, dice.uniform(0, 0.1) if sign else dice.uniform(1, 4)) for sign in signs]


def disturb(config: TrainConfig, moments: list[Moment], world: int = 2) -> int:
    """Train, kill all ranks at each moment, and finish.

    Returns how many kills hit a running process.
    """
    kills = 0
    for sign, delay in moments:
        processes = forked.start(world, train_small, config)
        deadline = time.monotonic() + 60
        while (
            sign
            and not sign(config.out)
            and processes[0].is_alive()
            and time.monotonic() < deadline
        ):
            time.sleep(0.0005)

        time.sleep(delay)
        kills += any(process.is_alive() for process in processes)
        for process in processes:
            process.kill()
            process.join()

        # a kill never leaves a damaged checkpoint
        if last := latest_checkpoint(config.out):
            verify_checkpoint(last)
    forked.run(world, train_small, config)
    return kills


def everything(run: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the last checkpoint."""
    return {
        f"{file.name}:{name}": tensor
        for file in sorted(latest_checkpoint(run).rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def log(run: Path) -> list[dict[str, Any]]:
    """Return the log without its clocks."""
    return [
        {k: v for k, v in line.items() if k not in CLOCKS}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def parts(run: Path, other: Path) -> dict[str, bool]:
    """Return which parts of two runs are bitwise equal."""
    a = everything(run)
    b = everything(other)
    assert a.keys() == b.keys()
    same = {name: torch.equal(a[name], b[name]) for name in a}
    equal = {
        part: all(same[name] for name in same if kind(name) == part)
        for part in sorted({kind(name) for name in a})
    }
    kept = [checkpoint.name for checkpoint in checkpoints(run)]
    return {
        **equal,
        "log": log(run) == log(other),
        "kept": kept == [checkpoint.name for checkpoint in checkpoints(other)],
    }


def kind(name: str) -> str:
    """Return what a tensor belongs to: `network`, `ema`, `optimizer`, `guard`, `window`.

    For a tensor of the file that sampling reads, it is the file's name.
    """
    file, tensor = name.split(":")
    return file if file.startswith("ema-") else tensor.split(".")[0]


def killed(root: Path, layout: tuple[int, str], number: int) -> int:
    """Train root/whole without kills and root/run with them; return how many hit a process."""
    world, parallel = layout
    config = dataclasses.replace(RUN, steps=400, parallel=parallel)
    forked.run(world, train_small, dataclasses.replace(config, out=root / "whole"))
    return disturb(dataclasses.replace(config, out=root / "run"), moments(number), world)
