"""What a run logged: metrics.jsonl and machine.json."""

import json
import sys
from pathlib import Path
from typing import Any

MACHINE = "machine.json"
NOTED = {
    "step",
    "device",
    "ranks",
    "flops_per_image",
    "peak_flops_per_rank",
    "versions",
}  # of each start, at least
BY_TIME = "loss_by_time/"  # before the ends of a bucket of times, in a line of the log


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that is damaged is left out with a warning, a last one cut short without."""
    texts = file.read_bytes().split(b"\n") if file.exists() else []
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(_logged(text))
        except ValueError as error:
            if number < len(
                texts
            ):  # else what comes after the last line's end: nothing, or a part of another line
                print(
                    f"warning: {file}, line {number}, is damaged and left out ({error})",
                    file=sys.stderr,
                )
    return lines


def _logged(text: bytes) -> dict[str, Any]:
    line = json.loads(text.decode())
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise ValueError("no object with a step")
    return line


def read_starts(run: Path) -> list[dict[str, Any]]:
    """What the run was trained on, start by start, as machine.json has it; nothing where it is missing, or, with a
    warning, damaged: nothing depends on it."""
    file = run / MACHINE
    if not file.exists():
        return []
    try:
        starts = json.loads(file.read_text())
        if not all(one.keys() >= NOTED for one in starts):
            raise ValueError("a start without all that is noted of one")
        return list(starts)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print(f"warning: {file} is damaged and left out ({error})", file=sys.stderr)
        return []
