"""Values of a sweep's flags: lists such as 1,1.5,2 and ranges START:STOP:STEP, in any mixture."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import TypeVar

from dit.errors import UserError, did_you_mean

MOST = 1000  # values of one flag, and settings of one sweep
NUMBERS = "numbers of 0 or more, such as 1,1.5,2 or 1:4:0.25"
COUNTS = "whole numbers above 0, such as 10,25,50 or 10:50:10"
INTERVALS = "LOW-HIGH with 0 <= LOW <= HIGH <= 1, such as 0-1,0.2-0.8"
INTERVAL = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")

Value = TypeVar("Value")


def parse_numbers(flag: str, text: str) -> list[float]:
    """Return numbers of 0 or more, in the order given, without repetitions.

    START:STOP:STEP counts in decimal, so that 1:4:0.25 has exactly 1.75, and STOP where a step
    lands on it.
    """
    values = _decimals(flag, text, NUMBERS)
    return _unique(map(float, values))


def parse_counts(flag: str, text: str) -> list[int]:
    """Return whole numbers above 0, as `parse_numbers` does."""
    values = _decimals(flag, text, COUNTS)
    for value in values:
        if value < 1 or value != int(value):
            raise _wrong(flag, text, f"{value:f}", COUNTS)
    return _unique(map(int, values))


def parse_intervals(flag: str, text: str) -> list[tuple[float, float]]:
    """Return intervals LOW-HIGH of time between 0 and 1."""
    found = []
    for entry in _entries(flag, text, INTERVALS):
        match = INTERVAL.fullmatch(entry)
        low, high = map(float, match.groups()) if match else (1.0, 0.0)
        if not low <= high <= 1:
            raise _wrong(flag, text, entry, INTERVALS)
        found.append((low, high))
    return _unique(found)


def parse_names(flag: str, text: str, known: Sequence[str]) -> list[str]:
    """Return names out of those known."""
    names = _entries(flag, text, f"names out of {', '.join(known)}, separated by commas")
    for name in names:
        if name not in known:
            expected = f"{', '.join(known)}, or several of them"
            raise UserError(f"{flag} {name}", expected, did_you_mean(name, known))
    return _unique(names)


def check_count(what: str, count: int) -> None:
    """Refuse more settings than anyone can want."""
    if count > MOST:
        given = f"{what} makes {count:,} settings"
        raise UserError(given, f"at most {MOST:,}", "take fewer, or a larger step")


def _entries(flag: str, text: str, expected: str) -> list[str]:
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise UserError(f"{flag} {text!r} with an empty entry", expected, f"change {flag}")
    return entries


def _decimals(flag: str, text: str, expected: str) -> list[Decimal]:
    values = []
    for entry in _entries(flag, text, expected):
        values += _range(flag, entry, expected)
    return values


def _range(flag: str, entry: str, expected: str) -> list[Decimal]:
    """Return the numbers of one entry: itself, or those from START to STOP."""
    parts = [_number(flag, entry, part, expected) for part in entry.split(":")]
    if len(parts) == 1:
        return parts
    if len(parts) != 3:
        raise _wrong(flag, entry, entry, f"START:STOP:STEP, or {expected}")

    start, stop, step = parts
    if step == 0:
        raise UserError(
            f"{flag} {entry} with steps of 0",
            "a step above 0",
            "change the last of the three numbers",
        )
    if start > stop:
        raise UserError(
            f"{flag} {entry}, which runs backwards",
            "START:STOP:STEP with START at most STOP",
            f"pass {flag} {stop:f}:{start:f}:{step:f}",
        )

    length = stop - start
    count = 10**9
    # a tiny step would overflow the context of decimals
    if length / step < count:
        count = int(length // step) + 1
    check_count(f"{flag} {entry}", count)
    return [start + i * step for i in range(count)]


def _number(flag: str, entry: str, part: str, expected: str) -> Decimal:
    try:
        value = Decimal(part.strip())
    except InvalidOperation:
        raise _wrong(flag, entry, part, expected) from None
    if not value.is_finite() or not 0 <= value <= 10**9:
        raise _wrong(flag, entry, part, expected)
    return value


def _wrong(flag: str, text: str, part: str, expected: str) -> UserError:
    where = f" (in {text})" if part != text else ""
    return UserError(f"{flag} {part!r}{where}", expected, f"change {flag}")


def _unique(values: Iterable[Value]) -> list[Value]:
    return list(dict.fromkeys(values))
