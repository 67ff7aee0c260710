"""A measurement with what it was measured on, as JSON in benchmarks/results/."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from dit.distributed.device import library_versions
from dit.utils.files import write_atomically

RESULTS = Path(__file__).parent / "results"


def record(name: str, command: str, results: Any, table: Sequence[str] = ()) -> Path:
    """Write benchmarks/results/NAME-DEVICE-DATE.json and, of lines of Markdown, the same with .md; where another
    command has written that today, with a number."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    values = {
        "command": command,
        "date": date.today().isoformat(),
        "commit": commit(),
        "hardware": {"device": device, "processor": processor(), "cores": torch.get_num_threads()},
        "versions": library_versions("torch", "timm", "diffusers", "torchao", "torch-fidelity"),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    file = _free(f"{name}-{device.replace(' ', '-').lower()}-{date.today().isoformat()}", command)
    with write_atomically(file) as beside:
        beside.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    if table:
        file.with_suffix(".md").write_text("\n".join(table) + "\n")
    return file


def _free(stem: str, command: str) -> Path:
    """The first file of that name that is not there, or that the same command has written."""
    names = (
        RESULTS / f"{stem}{number}.json" for number in chain([""], (f"-{n}" for n in count(2)))
    )
    return next(file for file in names if not file.exists() or _command(file) == command)


def _command(file: Path) -> str | None:
    """That wrote the results; None where they are damaged."""
    try:
        return json.loads(file.read_text())["command"]
    except (ValueError, KeyError):
        return None


def rows_told(
    rows: Iterable[dict[str, Any]],
    tell: Callable[[dict[str, Any]], str],
    head: Sequence[str],
    write: Callable[[list[dict[str, Any]], list[str]], Path] | None,
) -> None:
    """Print rows of a Markdown table as they come and, where they are to be written, write all so far after each: what
    is measured stays, whatever ends the rest."""
    print(*head, sep="\n", flush=True)
    found, file = list[dict[str, Any]](), None
    for row in rows:
        found.append(row)
        print(tell(row), flush=True)
        file = write(found, [*head, *map(tell, found)]) if write else None
    if file:
        print(file)


def commit() -> str:
    """The code's, with a + if tracked files have changed since, but for results; what DIT_COMMIT says of a copy."""
    changed = git("status", "--porcelain", "-uno", "--", ":!benchmarks/results")
    return os.environ.get("DIT_COMMIT") or git("rev-parse", "--short", "HEAD") + (
        "+" if changed else ""
    )


def git(*asked: str) -> str:
    """What git says; nothing where there is no git, or no repository."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *asked], capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()
