"""What there is time for."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Thing = TypeVar("Thing")


def within(
    budget: float | None, things: Iterable[Thing], name: Callable[[Thing], str]
) -> Iterator[Thing]:
    """Things in their order for as long as there are seconds left; tells which were left out."""
    end = time.monotonic() + (float("inf") if budget is None else budget)
    left_out = []
    for thing in things:
        if time.monotonic() < end:
            yield thing
        else:
            left_out.append(name(thing))
    if left_out:
        print(f"left out for lack of time: {', '.join(left_out)}", file=sys.stderr, flush=True)
