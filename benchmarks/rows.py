"""Tables measured row by row: which rows, for how long, printed and written as they come."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from benchmarks.arguments import typed_command
from benchmarks.ceilings import format_ceilings
from benchmarks.record import record

Part = TypeVar("Part")


def matches(name: str, patterns: list[re.Pattern[str]]) -> bool:
    return any(pattern.search(name) for pattern in patterns)


def require_rows(parser: argparse.ArgumentParser, chosen: list, names: list[str]) -> None:
    """Exit with the names of all rows if --only matches none."""
    if not chosen:
        parser.error("--only matches no row; rows are\n  " + "\n  ".join(names))


def within_budget(
    budget: float | None, parts: Iterable[Part], name: Callable[[Part], str]
) -> Iterator[Part]:
    """Yield parts in order until `budget` seconds have passed; print which were skipped."""
    end = time.monotonic() + (float("inf") if budget is None else budget)
    skipped = []
    for part in parts:
        if time.monotonic() < end:
            yield part
        else:
            skipped.append(name(part))

    if skipped:
        print(f"skipped for lack of time: {', '.join(skipped)}", file=sys.stderr, flush=True)


def print_rows(
    name: str,
    best: dict[str, float],
    header: str,
    rows: Iterable[dict[str, Any]],
    format_row: Callable[[dict[str, Any]], str],
    save: bool,
) -> None:
    """Print a Markdown table below the device's ceilings; with `save`, also record it.

    All rows so far are written after each, so that an interruption loses none of them.
    """
    lines = [format_ceilings(best), "", header]
    print(*lines, sep="\n", flush=True)

    measured = []
    file = None
    for row in rows:
        measured.append(row)
        lines.append(format_row(row))
        print(lines[-1], flush=True)
        if save:
            file = record(name, typed_command(), {"ceilings": best, "rows": measured}, lines)

    if file:
        print(file)
