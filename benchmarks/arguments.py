"""Kinds of arguments that benchmarks share."""

import argparse
import re


def positive(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 expected")
    return int(text)


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{text}: a regular expression expected ({error})"
        ) from None


def has(name: str, patterns: list[re.Pattern[str]]) -> bool:
    """Whether a row of that name is asked for."""
    return any(one.search(name) for one in patterns)


def require_rows(parser: argparse.ArgumentParser, chosen: list, names: list[str]) -> None:
    """End with the rows that there are, where --only leaves none."""
    if not chosen:
        parser.error("--only: no row has that; rows are\n  " + "\n  ".join(names))
