"""Numbers, ranges and values of the protocol as text."""

import math
from typing import Any

LONG = 20  # entries of a list that are shown one by one


def number(value: float) -> str:
    """Return four significant digits, with an exponent only where there is no other way."""
    if value == 0:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits <= 7 else f"{value:.3g}"


def span(low: float, high: float) -> str:
    """Return a range with as many digits as show two digits of its width."""
    if not low < high:
        return number(low)
    digits = decimals(high - low)
    return f"{low:,.{digits}f} – {high:,.{digits}f}" if digits <= 7 else f"{low:.3g} – {high:.3g}"


def decimals(width: float) -> int:
    """Return how many decimals show two digits of `width`."""
    return max(0, 1 - math.floor(math.log10(width))) if width > 0 else 0


def plus_minus(value: float, deviation: float) -> tuple[str, str]:
    """Return a value and its deviation with the same decimals, which show two digits of it."""
    digits = decimals(deviation)
    if deviation == 0 or digits > 7:
        return number(value), f"± {number(deviation)}"
    return f"{value:,.{digits}f}", f"± {deviation:,.{digits}f}"


def arrow(direction: str) -> str:
    """Return an arrow down where `lower` is better."""
    return "↓" if direction == "lower" else "↑"


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun: 1 setting, 2 settings."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def show(value: Any) -> str:
    """Return a value of the protocol as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)) and len(value) > LONG:
        return f"{len(value)} values, {show(value[0])} … {show(value[-1])}"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {show(v)}" for k, v in value.items())
    return str(value)
