"""The whole road on handwritten digits: train, sample, evaluate, with seconds per stage.

    python -m benchmarks.quickstart [--out runs/quickstart] [--record]

Runs the commands a user would type, and prints them.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.record import record

CFG_SCALE = "1.5"


def commands(run: Path, train_steps: int | None, num_samples: int) -> dict[str, list[str]]:
    """The commands of each stage."""
    steps = [] if train_steps is None else ["--steps", str(train_steps)]
    return {
        "train": [
            "train.py",
            "--model",
            "DiT-Ti/2",
            "--data",
            "digits",
            "--out",
            str(run),
            "--resume",
            "auto",
            *steps,
        ],
        "sample": [
            "sample.py",
            "--run",
            str(run),
            "--cfg-scale",
            CFG_SCALE,
            "--out",
            str(run / "grid.png"),
        ],
        "evaluate": [
            "evaluate.py",
            "--run",
            str(run),
            "--cfg-scale",
            CFG_SCALE,
            "--num-samples",
            str(num_samples),
        ],
    }


def run_stage(name: str, command: list[str]) -> float:
    """Run one command, shown as typed; its seconds."""
    print(f"\n== {name}: python {shlex.join(command)}", flush=True)
    begin = time.perf_counter()
    finished = subprocess.run([sys.executable, *command])
    if finished.returncode:
        sys.exit(finished.returncode)
    return time.perf_counter() - begin


def main() -> None:
    """Run the stages and say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="run directory")
    parser.add_argument("--train-steps", type=int, help="train for fewer steps")
    parser.add_argument("--num-samples", type=int, default=500, help="how many samples to score")
    parser.add_argument(
        "--record", action="store_true", help="write the figures to benchmarks/results/"
    )
    args = parser.parse_args()
    stages = commands(args.out, args.train_steps, args.num_samples)
    seconds = {name: round(run_stage(name, command), 1) for name, command in stages.items()}
    report = json.loads((args.out / "evaluation" / "report.json").read_text())
    print("\n== done: " + ", ".join(f"{name} {s:.0f} s" for name, s in seconds.items()))
    for what, where in places(args.out).items():
        print(f"{what:<12}{where}")
    if args.record:
        print(
            record(
                "quickstart",
                shlex.join(["python", "-m", "benchmarks.quickstart", *sys.argv[1:]]),
                figures(seconds, report),
            )
        )


def places(run: Path) -> dict[str, Path]:
    """Where a user looks."""
    return {
        "sample grid": run / "grid.png",
        "loss curve": run / "loss.png",
        "learning": run / "samples" / "strip.png",
        "report": run / "evaluation" / "report.html",
    }


def figures(seconds: dict[str, float], report: dict[str, Any]) -> dict[str, Any]:
    """Seconds and scores, with their floor."""
    return {"seconds": seconds, "total_seconds": round(sum(seconds.values()), 1), "report": report}


if __name__ == "__main__":
    main()
