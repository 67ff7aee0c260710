"""A measurement with what it was measured on, as JSON in benchmarks/results/."""

import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dit.hardware import versions

RESULTS = Path(__file__).parent / "results"


def record(name: str, command: str, results: Any, table: Sequence[str] = ()) -> Path:
    """Write benchmarks/results/NAME-DEVICE-DATE.json and, of lines of Markdown, the same with .md."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    values = {
        "command": command,
        "date": date.today().isoformat(),
        "commit": commit + ("+" if changed else ""),
        "hardware": {"device": device, "processor": processor(), "cores": torch.get_num_threads()},
        "versions": versions("torch", "timm", "diffusers", "torchao", "torch-fidelity"),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{device.replace(' ', '-').lower()}-{date.today().isoformat()}.json"
    file.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    if table:
        file.with_suffix(".md").write_text("\n".join(table) + "\n")
    return file


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
