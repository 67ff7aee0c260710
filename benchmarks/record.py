"""Measurements as JSON in benchmarks/results/, with the hardware and versions behind them."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import torch

from dit.distributed.device import library_versions
from dit.utils.files import write_atomically

RESULTS = Path(__file__).parent / "results"


def record(name: str, command: str, results: Any, table: Sequence[str] = ()) -> Path:
    """Write benchmarks/results/NAME-DEVICE-DATE.json, and lines of Markdown to the same with .md.

    The file gets a number if another command wrote that name today.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    today = date.today().isoformat()
    values = {
        "command": command,
        "date": today,
        "commit": commit(),
        "hardware": {"device": device, "processor": processor(), "cores": torch.get_num_threads()},
        "versions": library_versions("torch", "timm", "diffusers", "torchao", "torch-fidelity"),
        "results": results,
    }

    RESULTS.mkdir(exist_ok=True)
    file = _free_file(f"{name}-{device.replace(' ', '-').lower()}-{today}", command)
    with write_atomically(file) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    if table:
        file.with_suffix(".md").write_text("\n".join(table) + "\n")
    return file


def _free_file(stem: str, command: str) -> Path:
    """Return the first name that is free, or that the same command wrote."""
    file = RESULTS / f"{stem}.json"
    numbers = count(2)
    while file.exists() and json.loads(file.read_text())["command"] != command:
        file = RESULTS / f"{stem}-{next(numbers)}.json"
    return file


def commit() -> str:
    """Return the commit of the code, with a + if tracked files have changed since.

    DIT_COMMIT overrides it, for a copy of the code without git. Result files do not count.
    """
    if given := os.environ.get("DIT_COMMIT"):
        return given
    changed = git("status", "--porcelain", "-uno", "--", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def git(*arguments: str) -> str:
    """Return git's output; empty without git or a repository."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """Return the CPU's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()
