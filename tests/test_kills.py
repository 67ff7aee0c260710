"""Two ranks, killed at any moment and started again, end where an undisturbed run ends, bit for bit."""

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file

from dit.config import TrainConfig
from dit.hardware import Ranks
from dit.models.dit import SIZES
from dit.runs import checkpoints, latest, read_metrics, verify
from dit.training.trainer import train

CLOCKS = {"img_per_s", "mfu", "data_wait", "memory_gib"}
RUN = TrainConfig(model="DiT-Ti/4", vae="identity", image_size=8, global_batch_size=16, warmup=2, sample_every=0,
                  ckpt_every=3, keep=2, log_every=2, precision="fp32", compile=False, resume="auto")


def train_small(ranks: Ranks, config: TrainConfig) -> None:
    SIZES["Ti"] = dict(depth=2, hidden_size=64, num_heads=2)
    train(config, ranks)


def writing(run: Path) -> bool:
    return any(run.glob("checkpoints/.step-*"))


def sealing(run: Path) -> bool:
    return any(run.glob("checkpoints/.step-*/ema-*.safetensors"))


def pruning(run: Path) -> bool:
    found = [*run.glob("checkpoints/step-*")]
    return len(found) > len(checkpoints(run)) or len(found) > RUN.keep


def disturb(config: TrainConfig, moments: list[tuple[Callable[[Path], bool] | None, float]]) -> int:
    """Train, with a kill of both ranks at each moment: a delay, after something is seen where that is asked for; how
    many kills met a run at work."""
    kills = 0
    for sign, delay in moments:
        processes = forked.start(2, train_small, config)
        deadline = time.monotonic() + 60
        while sign and not sign(config.out) and processes[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(delay)
        kills += any(process.is_alive() for process in processes)
        for process in processes:
            process.kill()
            process.join()
        if last := latest(config.out):
            verify(last)
    forked.run(2, train_small, config)
    return kills


def everything(run: Path) -> dict[str, torch.Tensor]:
    return {f"{file.name}:{name}": tensor for file in sorted(latest(run).rglob("*.safetensors"))
            for name, tensor in load_file(file).items()}


def assert_same(whole: Path, other: Path) -> None:
    a, b = everything(whole), everything(other)
    assert a.keys() == b.keys()
    assert {name.split(":")[1].split(".")[0] for name in a} >= {"network", "ema", "optimizer", "guard", "window"}
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    logs = [[{k: v for k, v in line.items() if k not in CLOCKS} for line in read_metrics(run / "metrics.jsonl")]
            for run in (whole, other)]
    assert logs[0] == logs[1]
    assert [c.name for c in checkpoints(whole)] == [c.name for c in checkpoints(other)]
    left = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, other)]
    assert left[0] == left[1], "kills leave nothing behind"


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_five_kills_leave_no_trace(parallel, tmp_path):
    config = dataclasses.replace(RUN, steps=150, parallel=parallel, out=tmp_path / "run")
    moments = [(writing, 0.0), (sealing, 0.0), (pruning, 0.0), (None, 2.5), (writing, 0.05)]
    assert disturb(config, moments) >= 4
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    forked.run(2, train_small, whole)
    assert_same(whole.out, config.out)


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(tmp_path):
    dice = random.Random(0)
    config = dataclasses.replace(RUN, steps=400, out=tmp_path / "run")
    signs = [None, writing, sealing, pruning]
    moments = [(sign, dice.uniform(0, 0.1) if sign else dice.uniform(1, 4)) for sign in dice.choices(signs, k=30)]
    kills = disturb(config, moments)
    print(f"{kills} kills of 30 met a run at work")
    assert kills >= 25
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    forked.run(2, train_small, whole)
    assert_same(whole.out, config.out)
