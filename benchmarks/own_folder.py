"""From a folder of colour images to pictures, by the defaults, with a stopwatch.

    python -m benchmarks.own_folder [--out runs/my-photos] [--minutes 15] [--record]

The folder is `my-photos` of `benchmarks.image_sets`. It prints the commands that a user would type,
and runs them.
"""

import shlex
import shutil
import time
from pathlib import Path

from benchmarks import image_sets
from benchmarks.arguments import new_parser, typed_command
from benchmarks.quickstart import run_stage
from benchmarks.record import record
from dit.runs.logs import read_metrics

CFG_SCALE = 3


def commands(data: Path, run: Path, minutes: float | None) -> dict[str, str]:
    """Return the command of each stage."""
    folder = shlex.quote(str(run))
    length = "" if minutes is None else f" --minutes {minutes:g}"
    guided = f"--run {folder} --cfg-scale {CFG_SCALE}"
    return {
        "train": f"train.py --data {shlex.quote(str(data))} --out {folder}{length}",
        "sample": f"sample.py {guided} --per-class 8 --out {shlex.quote(str(run / 'grid.png'))}",
        "evaluate": f"evaluate.py {guided} --num-samples 300",
    }


def main() -> None:
    """Run the stages; print the seconds of each and to the first preview."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/my-photos"), help="run directory")
    parser.add_argument("--minutes", type=float, help="of training; the default of train.py")
    args = parser.parse_args()

    data = image_sets.make("my-photos")
    begun = time.time()
    stages = commands(data, args.out, args.minutes)
    seconds = {name: run_stage(name, command) for name, command in stages.items()}

    first = min(args.out.glob("samples/step-*.png"))
    seconds["to the first preview"] = round(first.stat().st_mtime - begun, 1)
    last = read_metrics(args.out / "metrics.jsonl")[-1]
    results = {"seconds": seconds, "steps": last["step"], "loss": last["loss"]}
    print("\n" + "\n".join(f"{name}: {value:g} s" for name, value in seconds.items()))
    print(args.out / "grid.png")
    if args.record:
        shutil.copy(args.out / "grid.png", "docs/images/my-photos-grid.png")
        print(record("my-photos", typed_command(), results))


if __name__ == "__main__":
    main()
