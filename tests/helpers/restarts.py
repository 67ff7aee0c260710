"""Trainings under torchrun, as processes that a test can kill."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dit.runs.logs import MACHINE, read_metrics

ROOT = Path(__file__).parents[2]

FLAGS = (
    "--vae identity --image-size 8 --model DiT-Ti/4 --batch-size 16 --sample-every 0 "
    "--log-every 1 --ckpt-every 20 --precision fp32"
)
LONG = 100_000  # steps, or seconds


def launch(out: Path, *flags: object, restarts: int = 0) -> subprocess.Popen[str]:
    """Start a training on two ranks under torchrun."""
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    launcher = [sys.executable, *module, "--max-restarts", restarts]
    return begin([*launcher, ROOT / "train.py"], out, *flags)


def begin(
    launcher: Sequence[object], out: Path, *flags: object, **environment: str
) -> subprocess.Popen[str]:
    """Start a training on CPUs with a launcher that takes the flags of train.py."""
    everything = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": sys.executable,
        **environment,
    }
    command = [*map(str, (*launcher, "--out", out, *FLAGS.split(), *flags))]
    return subprocess.Popen(
        command, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait(sign: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300) -> float:
    """Wait for a sign while the process is alive; return when it came."""
    deadline = time.monotonic() + seconds
    while not sign():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[0][-3000:])
        time.sleep(0.01)
    return time.monotonic()


def done(out: Path) -> int:
    """Return the last step in the log of a run."""
    return max((line["step"] for line in read_metrics(out / "metrics.jsonl")), default=0)


def starts(out: Path) -> list[int]:
    """Return the steps at which a run was started."""
    file = out / MACHINE
    if not file.exists():
        return []
    return [start["step"] for start in json.loads(file.read_text())]


def process_of(rank: int, launcher: int) -> int:
    """Return the process id of a rank that the launcher started."""
    return next(
        child
        for child in descendants(launcher)
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0")
    )


def descendants(process: int) -> Iterator[int]:
    """Yield the ids of a process's children, their children, and so on."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            yield child
            yield from descendants(child)


def stop(process: subprocess.Popen[str]) -> float:
    """Send SIGTERM; return the seconds until the process ends."""
    begin = time.monotonic()
    process.terminate()
    process.communicate(timeout=300)
    return time.monotonic() - begin
