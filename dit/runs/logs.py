"""What a run logged: metrics.jsonl and machine.json."""

import json
import sys
from pathlib import Path
from typing import Any

MACHINE = "machine.json"
START_KEYS = {"step", "device", "ranks", "flops_per_image", "peak_flops_per_rank", "versions"}
BY_TIME = "loss_by_time/"  # in a line of the log, before the bounds of a bucket of times


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; damaged ones are skipped with a warning."""
    texts = file.read_bytes().split(b"\n") if file.exists() else []
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(_parse(text))
        except ValueError as error:
            # After the last line's end comes nothing, or a line that a kill cut short: no warning.
            if number < len(texts):
                _warn(f"{file}, line {number}, is damaged and skipped ({error})")
    return lines


def _parse(text: bytes) -> dict[str, Any]:
    line = json.loads(text.decode())
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise ValueError("no object with a step")
    return line


def read_starts(run: Path) -> list[dict[str, Any]]:
    """Return the starts in machine.json; none if it is missing or, with a warning, damaged."""
    file = run / MACHINE
    if not file.exists():
        return []
    try:
        starts = json.loads(file.read_text())
        if not all(start.keys() >= START_KEYS for start in starts):
            raise ValueError("a start without all of its entries")
        return list(starts)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _warn(f"{file} is damaged and ignored ({error})")
        return []


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
