"""What flags of a sweep mean: lists such as 1,1.5,2 and ranges START:STOP:STEP, in any mixture."""

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
    """Numbers of 0 or more, in the order given, each once.

    START:STOP:STEP counts in decimal, so that values are those one would write: 1:4:0.25 has 1.75, and STOP where a
    step lands on it.

    Raises:
        UserError: not such numbers, a range that is reversed or stands still, or more than 1,000 values.
    """
    return _each_once(
        float(value)
        for entry in _entries(flag, text, NUMBERS)
        for value in _range(flag, entry, NUMBERS)
    )


def parse_counts(flag: str, text: str) -> list[int]:
    """Whole numbers above 0, as `parse_numbers`.

    Raises:
        UserError: as there, or a number that is not whole or is 0.
    """
    values = [
        value for entry in _entries(flag, text, COUNTS) for value in _range(flag, entry, COUNTS)
    ]
    for value in values:
        if value < 1 or value != int(value):
            raise _wrong(flag, text, f"{value:f}", COUNTS)
    return _each_once(int(value) for value in values)


def parse_intervals(flag: str, text: str) -> list[tuple[float, float]]:
    """Intervals of time LOW-HIGH between 0 and 1, in the order given, each once.

    Raises:
        UserError: not such intervals.
    """
    return _each_once(_interval(flag, text, entry) for entry in _entries(flag, text, INTERVALS))


def parse_names(flag: str, text: str, known: Sequence[str]) -> list[str]:
    """Names out of those known, in the order given, each once.

    Raises:
        UserError: another name.
    """
    names = _entries(flag, text, f"names out of {', '.join(known)}, separated by commas")
    for name in names:
        if name not in known:
            raise UserError(
                f"{flag} {name}",
                f"{', '.join(known)}, or several of them",
                did_you_mean(name, known),
            )
    return _each_once(names)


def check_count(what: str, count: int) -> None:
    """Refuse a sweep that nobody can have meant.

    Raises:
        UserError: more than 1,000 settings.
    """
    if count > MOST:
        raise UserError(
            f"{what} makes {count:,} settings", f"at most {MOST:,}", "take fewer, or a larger step"
        )


def _entries(flag: str, text: str, expected: str) -> list[str]:
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise UserError(f"{flag} {text!r} with an empty entry", expected, f"change {flag}")
    return entries


def _range(flag: str, entry: str, expected: str) -> list[Decimal]:
    """The numbers of one entry: itself, or those from START to STOP."""
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
            f"pass {flag} {parts[1]:f}:{parts[0]:f}:{parts[2]:f}",
        )
    count = int((stop - start) // step) + 1 if (stop - start) / step < 10**9 else 10**9
    check_count(f"{flag} {entry}", count)
    return [start + i * step for i in range(count)]


def _number(flag: str, entry: str, part: str, expected: str) -> Decimal:
    try:
        value = Decimal(part.strip())
    except InvalidOperation:
        raise _wrong(flag, entry, part, expected) from None
    if not value.is_finite() or value < 0 or value > 10**9:
        raise _wrong(flag, entry, part, expected)
    return value


def _interval(flag: str, text: str, entry: str) -> tuple[float, float]:
    found = INTERVAL.fullmatch(entry)
    if found is None or not 0 <= float(found[1]) <= float(found[2]) <= 1:
        raise _wrong(flag, text, entry, INTERVALS)
    return float(found[1]), float(found[2])


def _wrong(flag: str, text: str, part: str, expected: str) -> UserError:
    where = f" (in {text})" if part != text else ""
    return UserError(f"{flag} {part!r}{where}", expected, f"change {flag}")


def _each_once(values: Iterable[Value]) -> list[Value]:
    return list(dict.fromkeys(values))
