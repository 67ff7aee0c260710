"""Command-line arguments that benchmarks share."""

import argparse
import re
import shlex
import sys
from pathlib import Path


def new_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser described by the first line of `doc`, with --record."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write results to the repository")
    return parser


def experiment_parser(doc: str, **defaults: object) -> argparse.ArgumentParser:
    """Return a parser for experiments that train, sample and score."""
    parser = new_parser(doc)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--out", type=Path, help="folder of all experiments")
    parser.add_argument("--train-steps", type=int, help="optimizer steps of each training")
    parser.add_argument("--num-samples", type=int, help="samples behind each score")
    parser.set_defaults(**defaults)
    return parser


def table_parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser for a table measured row by row."""
    parser = new_parser(doc)
    parser.add_argument(
        "--only",
        nargs="+",
        type=regex,
        default=[regex("")],
        metavar="PATTERN",
        help="rows that match one of these patterns, such as 'XL/2 x128 dit'; all unless given",
    )
    parser.add_argument("--rounds", type=positive_int, default=rounds)
    parser.add_argument("--budget", type=float, help="seconds after which no further row starts")
    parser.add_argument("--tiny", action="store_true", help="a small model, to check that all runs")
    return parser


def positive_int(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 expected")
    return int(text)


def regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        message = f"{text}: a regular expression expected ({error})"
        raise argparse.ArgumentTypeError(message) from None


def typed_command() -> str:
    """Return the command that started this benchmark."""
    module = f"benchmarks.{Path(sys.argv[0]).stem}"
    return shlex.join(["python", "-m", module, *sys.argv[1:]])
