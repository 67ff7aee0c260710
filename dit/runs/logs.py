"""What a run logged: metrics.jsonl and machine.json."""

import sys
from pathlib import Path
from typing import Any, TypedDict

from dit.errors import UserError
from dit.utils.typed_json import WrongJson, parse_json, read_json

MACHINE = "machine.json"
BY_TIME = "loss_by_time/"  # in a line of the log, before the bounds of a bucket of times

Line = dict[str, int | float | str]
"""A line of the log: its step, and numbers by name."""


class Start(TypedDict):
    """What is read of a start in machine.json."""

    step: int
    device: str
    ranks: int
    flops_per_image: float
    peak_flops_per_rank: float
    versions: dict[str, str | None]


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
    # a loss may be NaN
    line = parse_json(text, Line, nan=True)
    if type(line.get("step")) is not int:
        raise WrongJson("no object with a step")
    # an event is only printed; the rest is drawn
    numbers = () if "event" in line else line.keys() - {"eval"}
    for name in numbers:
        if isinstance(line[name], str):
            raise WrongJson(f"{name} is {line[name]!r}, not a number")
    return line


def read_starts(run: Path) -> list[Start]:
    """Return the starts in machine.json; none if it is missing or, with a warning, damaged."""
    file = run / MACHINE
    if not file.exists():
        return []
    try:
        return read_json(file, list[Start], "the starts of a training", "")
    except UserError as error:
        _warn(f"{error.given}: ignored")
        return []


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
