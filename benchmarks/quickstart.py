"""The quickstart on handwritten digits: train, sample, evaluate, with the seconds of each stage.

    python -m benchmarks.quickstart [--out runs/quickstart] [--record]

It prints the commands that a user would type, and runs them.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.arguments import new_parser, typed_command
from benchmarks.record import record

CFG_SCALE = 1.5
RESULTS = {
    "sample grid": "grid.png",
    "loss curve": "loss.png",
    "learning": "samples/strip.png",
    "report": "evaluation/report.html",
}


def commands(run: Path, train_steps: int | None, num_samples: int) -> dict[str, str]:
    """Return the command of each stage."""
    steps = "" if train_steps is None else f" --steps {train_steps}"
    folder = shlex.quote(str(run))
    grid = shlex.quote(str(run / "grid.png"))
    guided = f"--run {folder} --cfg-scale {CFG_SCALE}"
    return {
        "train": f"train.py --model DiT-Ti/2 --data digits --out {folder} --resume auto{steps}",
        "sample": f"sample.py {guided} --out {grid}",
        "evaluate": f"evaluate.py {guided} --num-samples {num_samples}",
    }


def run_stage(name: str, command: str) -> float:
    """Print and run one command; return its seconds."""
    print(f"\n== {name}: python {command}", flush=True)
    begin = time.perf_counter()
    finished = subprocess.run([sys.executable, *shlex.split(command)])
    if finished.returncode:
        sys.exit(finished.returncode)
    return round(time.perf_counter() - begin, 1)


def main() -> None:
    """Run the stages and print where the results are."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="run directory")
    parser.add_argument("--train-steps", type=int, help="train for fewer steps")
    parser.add_argument("--num-samples", type=int, default=500, help="how many samples to score")
    args = parser.parse_args()

    stages = commands(args.out, args.train_steps, args.num_samples)
    seconds = {name: run_stage(name, command) for name, command in stages.items()}

    print("\n== done: " + ", ".join(f"{name} {s:.0f} s" for name, s in seconds.items()))
    for name, file in RESULTS.items():
        print(f"{name:<12}{args.out / file}")

    if args.record:
        report = json.loads((args.out / "evaluation" / "report.json").read_text())
        total = round(sum(seconds.values()), 1)
        figures = {"seconds": seconds, "total_seconds": total, "report": report}
        print(record("quickstart", typed_command(), figures))


if __name__ == "__main__":
    main()
