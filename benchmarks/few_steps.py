"""Few steps: MeanFlow from the weights of a flow, by as much training again.

    python -m benchmarks.few_steps [--sets emoji-64 mnist-5k] [--minutes 2] [--lr 1e-3] [--record]

The flow is the recipe `ours+batch` of `benchmarks.time_to_quality`. MeanFlow goes on from its
weights for as many steps of as many images, without guidance and by another rate; they take longer.
Scores are the Fréchet distances of that page without guidance: of the flow in 25 steps, and of both
in few. An interrupted benchmark goes on where it was.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import new_parser, typed_command
from benchmarks.experiments import claim, done, perform
from benchmarks.record import record
from benchmarks.time_to_quality import MARKS, OTHER_SAMPLER, SETS, Bench, distances
from dit.runs.checkpoint_files import checkpoint_step, find_weights

RECIPE = "ours+batch"
MANY = (OTHER_SAMPLER, 25)
FEW = [("euler", 1), ("euler", 2)]
"""Samplers with their steps. Without guidance, a step is one call of the network."""


def train(bench: Bench, flow: Path, lr: str, seed: int) -> Path:
    """Return the MeanFlow from the weights of a flow, after as many steps."""
    run = flow.with_name(f"meanflow-{lr}-{seed}")
    steps = checkpoint_step(find_weights(flow).parent)
    flags = f"{bench.flags(RECIPE)} --objective meanflow --init {flow} --lr {lr}"
    typed = f"dit train {flags} --seed {seed} --steps {steps} --log-every 10"
    if not (claim(run / ".command", typed) and done(run, steps)):
        perform(f"{typed} --resume auto --out {run}")
    return run


def score(bench: Bench, run: Path, sampler: str, steps: int) -> dict[str, Any]:
    """Return the distance of a run's samples without guidance, and that of real images."""
    checkpoint = find_weights(run).parent
    found, floor = distances(checkpoint, bench.name, [1.0], bench.samples, sampler, steps)
    return {"sampler": sampler, "calls": steps, "distance": found[1.0], "floor": floor}


def measure(bench: Bench, lr: str, seed: int) -> dict[str, Any]:
    """Return the scores of a flow and of the MeanFlow that begins with its weights."""
    bench.prepare()
    flow = bench.train(RECIPE, seed)
    few = train(bench, flow, lr, seed)
    return {
        "steps": checkpoint_step(find_weights(few).parent),
        "flow": [score(bench, flow, *sampling) for sampling in (MANY, *FEW)],
        "meanflow": [score(bench, few, *sampling) for sampling in FEW],
    }


def main() -> None:
    """Train both for each set and seed, score, print."""
    parser = new_parser(__doc__)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs/few-steps"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--minutes", type=float, default=2.0, help="of the flow")
    parser.add_argument("--lr", default="1e-3", help="of MeanFlow")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--num-samples", type=int, default=500, help="behind each score")
    args = parser.parse_args()

    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in args.sets:
        for seed in args.seeds:
            bench = Bench(name, args.out, args.minutes, args.num_samples, MARKS[-1:])
            results[f"{name}, seed {seed}"] = measured = measure(bench, args.lr, seed)
            print(f"{name:<10}{seed:>3}", json.dumps(measured))
    if args.record:
        print(record("few-steps", typed_command(), results))


if __name__ == "__main__":
    main()
