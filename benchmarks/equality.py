"""Which runs end in the same bits: killed and undisturbed ones, in one layout and in others.

    python -m benchmarks.equality [--kills 30] [--record]

All are the same small training. *Killed* runs have all of their ranks killed (SIGKILL) at random moments: in a step,
while a checkpoint is written, sealed or pruned; each goes on from its last checkpoint. Compared are weights, EMA,
AdamW's moments and the log. Where bits differ, the difference is the largest of any weight of the EMA after eight
steps, as a share of the furthest that one has gone in the last four.
"""

import argparse
import dataclasses
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import forked
from benchmarks.record import record
from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.models.dit import SIZES
from dit.runs.checkpoints import checkpoints, latest_checkpoint, verify_checkpoint
from dit.runs.metrics import read_metrics

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
LAYOUTS = [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")]
ELSEWHERE = [
    ((4, "fsdp"), (1, "ddp")),
    ((1, "ddp"), (2, "fsdp")),
    ((2, "fsdp"), (4, "fsdp")),
    ((4, "fsdp"), (2, "ddp")),
]
Moment = tuple[Callable[[Path], bool] | None, float]
Layout = tuple[int, str]


def train_small(ranks: Ranks, config: TrainConfig) -> None:
    """Train a network of two blocks."""
    SIZES["Ti"] = dict(depth=2, hidden_size=64, num_heads=2)
    train(config, ranks)


# -- kills -----------------------------------------------------------------------------------------------------------


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
    """Train, with a kill of all ranks at each moment: a delay, after something is seen where that is asked for; how
    many kills met a run at work."""
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


# -- comparisons -----------------------------------------------------------------------------------------------------


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
    """Of a tensor: `network`, `ema`, `optimizer`, `guard`, `window`; of the file that sampling reads, its name."""
    file, tensor = name.split(":")
    return file if file.startswith("ema-") else tensor.split(".")[0]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Its EMA."""
    return load_file(next(checkpoint.glob("ema-*.safetensors")))


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of any weight."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def told(layout: Layout) -> str:
    """A layout in words."""
    world, parallel = layout
    return "1 process" if world == 1 else f"{world} ranks, {parallel}"


# -- the table -------------------------------------------------------------------------------------------------------


def killed(root: Path, layout: Layout, number: int) -> dict[str, Any]:
    """A run that is killed so often beside one that is not."""
    world, parallel = layout
    whole, run = (
        dataclasses.replace(RUN, steps=400, parallel=parallel, out=root / name)
        for name in ("whole", "run")
    )
    forked.run(world, train_small, whole)
    kills = disturb(run, moments(number), world)
    return {
        "layout": told(layout),
        "tried": number,
        "met_at_work": kills,
        "same": parts(whole.out, run.out),
    }


def layouts(root: Path) -> list[dict[str, Any]]:
    """Eight steps in every layout twice, beside one process; and four in one layout that go on in another."""
    config = dataclasses.replace(
        RUN, steps=8, warmup=0, lr=1e-3, cooldown=0, ckpt_every=4, keep=9, resume=None
    )
    for world, parallel in LAYOUTS:
        for name in ("a", "b"):
            out = root / f"{name}-{world}-{parallel}"
            forked.run(world, train_small, dataclasses.replace(config, parallel=parallel, out=out))
    one, rows = weights(latest_checkpoint(root / "a-1-ddp")), []
    moved = apart(one, weights(checkpoints(root / "a-1-ddp")[0]))
    for layout in LAYOUTS:
        a, b = (root / f"{name}-{layout[0]}-{layout[1]}" for name in ("a", "b"))
        rows.append(
            {
                "run": told(layout),
                "again": all(parts(a, b).values()),
                "to_one_process": apart(one, weights(latest_checkpoint(a))) / moved,
            }
        )
    for before, after in ELSEWHERE:
        run = root / f"{before}-{after}"
        shutil.copytree(root / f"a-{before[0]}-{before[1]}", run)
        shutil.rmtree(latest_checkpoint(run))
        forked.run(
            after[0],
            train_small,
            dataclasses.replace(config, parallel=after[1], out=run, resume="auto"),
        )
        rows.append(
            {
                "run": f"{told(before)}, then {told(after)}",
                "to_one_process": apart(one, weights(latest_checkpoint(run))) / moved,
            }
        )
    return rows


def main() -> None:
    """Train, kill, compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = layouts(Path(folder))
    print(
        "\n".join(
            f"{row['run']:<34} {row['to_one_process']:.1e} from one process"
            + (f"; again: {row['again']}" if "again" in row else "")
            for row in rows
        )
    )
    kills = []
    for layout in ((2, "ddp"), (2, "fsdp"), (1, "ddp")):
        with tempfile.TemporaryDirectory() as folder:
            kills.append(killed(Path(folder), layout, args.kills))
        print(kills[-1], flush=True)
    if args.record:
        command = shlex.join(["python", "-m", "benchmarks.equality", *sys.argv[1:]])
        print(record("equality", command, {"layouts": rows, "kills": kills}))


if __name__ == "__main__":
    main()
