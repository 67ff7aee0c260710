"""Runs that are killed at chosen moments, and what of two runs is the same to the bit."""

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import forked
from safetensors.torch import load_file

from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.models.dit import SIZES
from dit.runs.checkpoints import checkpoints, latest_checkpoint, verify_checkpoint
from dit.runs.metrics import read_metrics
from dit.training.trainer import train

CLOCKS = {"img_per_s", "mfu", "data_wait", "memory_gib"}  # of the log: what a clock says
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
    """A checkpoint is under way."""
    return any(run.glob("checkpoints/.step-*"))


def sealing(run: Path) -> bool:
    """Its state is written, and its EMA."""
    return any(run.glob("checkpoints/.step-*/ema-*.safetensors"))


def pruning(run: Path) -> bool:
    """There is one more than will be kept."""
    return len([*run.glob("checkpoints/step-*")]) > RUN.keep


def moments(number: int) -> list[Moment]:
    """So many random ones."""
    dice = random.Random(0)
    signs = dice.choices([None, writing, sealing, pruning], k=number)
    return [(sign, dice.uniform(0, 0.1) if sign else dice.uniform(1, 4)) for sign in signs]


def disturb(config: TrainConfig, moments: list[Moment], world: int = 2) -> int:
    """Train, and kill all ranks at each moment: a delay, after a sign where one is given.

    Returns how many kills met a running training.
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
        if last := latest_checkpoint(config.out):
            verify_checkpoint(last)
    forked.run(world, train_small, config)
    return kills


def everything(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of its last checkpoint."""
    return {
        f"{file.name}:{name}": tensor
        for file in sorted(latest_checkpoint(run).rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def log(run: Path) -> list[dict[str, Any]]:
    """Its log, but for clocks."""
    return [
        {k: v for k, v in line.items() if k not in CLOCKS}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def parts(run: Path, other: Path) -> dict[str, bool]:
    """Which parts are the same to the bit."""
    a, b = everything(run), everything(other)
    assert a.keys() == b.keys()
    same = {name: torch.equal(a[name], b[name]) for name in a}
    kinds = sorted({kind(name) for name in a})
    return {
        **{part: all(v for name, v in same.items() if kind(name) == part) for part in kinds},
        "log": log(run) == log(other),
        "kept": [c.name for c in checkpoints(run)] == [c.name for c in checkpoints(other)],
    }


def kind(name: str) -> str:
    """Return what a tensor belongs to: `network`, `ema`, `optimizer`, `guard`, `window`.

    For a tensor of the file that sampling reads, it is the file's name.
    """
    file, tensor = name.split(":")
    return file if file.startswith("ema-") else tensor.split(".")[0]


def killed(root: Path, layout: tuple[int, str], number: int) -> int:
    """Train root/run with kills and root/whole without; return how many met a training."""
    world, parallel = layout
    config = dataclasses.replace(RUN, steps=400, parallel=parallel)
    forked.run(world, train_small, dataclasses.replace(config, out=root / "whole"))
    return disturb(dataclasses.replace(config, out=root / "run"), moments(number), world)
