"""Is training in bf16 stable at twice the tuned rate, with QK-norm and without?

    python -m benchmarks.stability [--steps 2000] [--lr 8e-3] [--seeds 0] [--record]

The recipe `ours` of `benchmarks.time_to_quality` on emoji-64, at twice its rate. A step is skipped
if its loss or its gradient norm is not finite, or 10 deviations above its running mean (`--spike`).
An interrupted benchmark goes on where it was.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.arguments import new_parser, typed_command
from benchmarks.experiments import claim, done, perform
from benchmarks.record import record
from benchmarks.time_to_quality import Bench
from dit.distributed.device import fast_bf16
from dit.runs.logs import read_metrics

BLOCKS = ("modern", "modern-qknorm")
LAST = 0.1  # of the steps, whose loss is told


def train(bench: Bench, block: str, lr: str, steps: int, seed: int) -> Path:
    """Return the run of these blocks."""
    run = bench.folder / "stability" / f"{block}-{lr}-{seed}"
    typed = (
        f"dit train {bench.flags('ours')} --block {block} --lr {lr} --precision bf16 "
        f"--seed {seed} --steps {steps} --log-every 10"
    )
    if not (claim(run / ".command", typed) and done(run, steps)):
        perform(f"{typed} --resume auto --out {run}")
    return run


def read(run: Path, steps: int) -> dict[str, Any]:
    """Return what the log says of steps that were skipped, and of the loss at the end."""
    lines = read_metrics(run / "metrics.jsonl")
    skipped = [line for line in lines if line.get("event") == "skipped"]
    logged = [line for line in lines if "loss" in line]
    return {
        "steps": logged[-1]["step"],
        "skipped": len(skipped),
        "first": skipped[0] if skipped else None,
        "last": skipped[-1] if skipped else None,
        "not_finite": sum("finite" in line["reason"] for line in skipped),
        "largest_gradient_norm": max(line["grad_norm"] for line in logged),
        "loss_at_the_end": fmean(
            line["loss"] for line in logged if line["step"] > (1 - LAST) * steps
        ),
    }


def main() -> None:
    """Train with both, print."""
    parser = new_parser(__doc__)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs/time-to-quality"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", default="8e-3", help="twice that of `ours`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()

    torch.set_num_threads(1)
    bench = Bench("emoji-64", args.out, 0, 0)
    bench.prepare()
    results: dict[str, Any] = {"bf16 units": fast_bf16(torch.device("cpu"))}
    for seed in args.seeds:
        for block in BLOCKS:
            run = train(bench, block, args.lr, args.steps, seed)
            results[f"{block}, seed {seed}"] = row = read(run, args.steps)
            print(f"{block:<15}{seed:>3}", json.dumps(row))
    if args.record:
        print(record("stability-bf16", typed_command(), results))


if __name__ == "__main__":
    main()
