"""How long a run stands still when a rank is killed, and how long it takes to stop.

    python -m benchmarks.restarts [--rounds 3] [--record]

Two ranks of torchrun train a small network on digits. *Restart*: rank 1 is killed (SIGKILL); seconds until torchrun
(`--max-restarts 1`) has started both again and the next step is done, and how many of them Python takes to import what
training needs, in as many processes at once. *Stop*: torchrun gets SIGTERM, in the midst of steps or of scoring;
seconds until a checkpoint is there and all have ended.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import record
from dit.runs.checkpoints import latest_checkpoint
from dit.runs.metrics import MACHINE, read_metrics

ROOT = Path(__file__).parent.parent
RANKS = 2
FLAGS = [
    "--vae",
    "identity",
    "--image-size",
    "8",
    "--model",
    "DiT-Ti/4",
    "--global-batch-size",
    "16",
    "--sample-every",
    "0",
    "--log-every",
    "1",
    "--ckpt-every",
    "20",
    "--precision",
    "fp32",
]
SCORING = ["--eval-every", "10", "--eval-samples", "20000"]
LONG = 100_000  # steps, or seconds


# -- a run to disturb ------------------------------------------------------------------------------------------------


def launch(out: Path, *flags: object, restarts: int = 0) -> subprocess.Popen[str]:
    """Begin a training under torchrun."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        RANKS,
        "--max-restarts",
        restarts,
    ]
    return begin([sys.executable, *launcher, ROOT / "train.py"], out, *flags)


def begin(
    launcher: Sequence[object], out: Path, *flags: object, **environment: str
) -> subprocess.Popen[str]:
    """Begin a training on CPUs, by what takes the flags of train.py."""
    everything = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": sys.executable,
        **environment,
    }
    command = [*map(str, (*launcher, "--out", out, *FLAGS, *flags))]
    return subprocess.Popen(
        command, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait(sign: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300) -> float:
    """Until there is a sign, while the process is alive; when that was."""
    deadline = time.monotonic() + seconds
    while not sign():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[0][-3000:])
        time.sleep(0.01)
    return time.monotonic()


def done(out: Path) -> int:
    """The last step in the log of a run."""
    return max((line["step"] for line in read_metrics(out / "metrics.jsonl")), default=0)


def starts(out: Path) -> list[int]:
    """Steps at which it was started."""
    file = out / MACHINE
    return [one["step"] for one in json.loads(file.read_text())] if file.exists() else []


def process_of(rank: int, launcher: int) -> int:
    """The id of the process that is a rank, below what launched it."""
    return next(
        child
        for child in descendants(launcher)
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0")
    )


def descendants(process: int) -> Iterator[int]:
    """Processes that it started, and those that they started."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            yield child
            yield from descendants(child)


# -- what is measured ------------------------------------------------------------------------------------------------


def restart(out: Path) -> float:
    """Seconds from the end of rank 1 to the next step."""
    process = launch(out, "--steps", LONG, restarts=1)
    try:
        wait(lambda: latest_checkpoint(out), process)
        os.kill(process_of(1, process.pid), signal.SIGKILL)
        killed = time.monotonic()
        wait(lambda: len(starts(out)) == 2, process)
        return wait(lambda: done(out) > starts(out)[1], process) - killed
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> float:
    """Seconds from SIGTERM to the end."""
    begin = time.monotonic()
    process.terminate()
    process.communicate(timeout=300)
    return time.monotonic() - begin


def stop_in(out: Path, step: int, *flags: object) -> float:
    """Seconds that a run takes to stop, a second after such a step."""
    process = launch(out, "--steps", LONG, *flags)
    wait(lambda: done(out) >= step, process)
    time.sleep(1)
    took = stop(process)
    assert latest_checkpoint(out), "it saved before it ended"
    return took


def imports() -> float:
    """Seconds that so many processes take to import what training needs, all at once."""
    begin = time.monotonic()
    command = [
        sys.executable,
        "-c",
        "import torch.utils.tensorboard, sklearn.datasets, dit.commands.train",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for process in [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(RANKS)]:
        process.wait()
    return time.monotonic() - begin


def measure(folder: Path) -> dict[str, float]:
    """Seconds of each."""
    return {
        "restart": restart(folder / "restart"),
        "of it imports": imports(),
        "stop in a step": stop_in(folder / "step", 25),
        "stop while scoring": stop_in(folder / "scoring", 9, *SCORING),
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(Path(folder)))
    rows: dict[str, Any] = {name: [one[name] for one in rounds] for name in rounds[0]}
    for name, seconds in rows.items():
        print(
            f"{name:<20}{statistics.median(seconds):>8.1f} s  ({min(seconds):.1f} to {max(seconds):.1f})"
        )
    if args.record:
        command = shlex.join(["python", "-m", "benchmarks.restarts", *sys.argv[1:]])
        print(record("restarts", command, {"ranks": RANKS, "seconds": rows}))


if __name__ == "__main__":
    main()
