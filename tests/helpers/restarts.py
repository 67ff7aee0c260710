"""Trainings under torchrun, in processes of their own, to be disturbed from outside."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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


LONG = 100_000  # steps, or seconds


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


def stop(process: subprocess.Popen[str]) -> float:
    """Seconds from SIGTERM to the end."""
    begin = time.monotonic()
    process.terminate()
    process.communicate(timeout=300)
    return time.monotonic() - begin
