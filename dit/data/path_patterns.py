"""Files by pattern: braces as in a shell, and wildcards; the error of names of nothing."""

import difflib
import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from dit.errors import UserError, did_you_mean

KINDS = (
    "`digits`, a folder of images, tar shards, a data set of Hugging Face (a folder, or hf:NAME), "
    "or MODULE:CLASS of a data set of your own"
)
IN_MEMORY = "in-memory"
"""Value of `--data` in the card of a run whose data Python code passed."""
NAMED = 5  # missing files, in a message
MOST_FILES = 1_000_000  # of a range in braces


def expand_pattern(pattern: str) -> list[Path]:
    """Return the files that `a-{000..003}.tar`, `folder/*.parquet` or a plain path names.

    Braces keep their order, and their files need not exist. Wildcards give existing files, sorted.
    """
    from braceexpand import braceexpand

    path = Path(pattern).expanduser()
    if path.exists():
        return [path] if path.is_file() else []
    if not is_pattern(pattern):
        return []
    _require_short_ranges(pattern)
    try:
        names = list(braceexpand(str(path)))
    except ValueError:  # unbalanced braces
        return []

    files: list[str] = []
    for name in names:
        files += sorted(glob(name)) if has_magic(name) else [name]
    return [Path(name) for name in files]


def _require_short_ranges(pattern: str) -> None:
    """Refuse ranges in braces that would fill the memory with names."""
    for first, last in re.findall(r"\{(\d{1,18})\.\.(\d{1,18})", pattern):
        if abs(int(last) - int(first)) >= MOST_FILES:
            raise UserError(
                f"{pattern} names more than {MOST_FILES:,} files",
                "the numbers of existing files",
                "correct the numbers in braces",
            )


def require_files(pattern: str, files: Sequence[Path]) -> None:
    """Refuse a pattern in braces that names files which do not exist."""
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        names = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{len(missing):,} of the {len(files):,} files of {pattern} {verb} missing: {names}",
            "files that exist",
            "correct the numbers in braces, or copy the missing files",
        )


def is_pattern(text: str) -> bool:
    """Return whether a text has braces or wildcards."""
    return "{" in text or has_magic(text)


def no_such_data(data: str) -> UserError:
    """Return the error of `--data` that names nothing, with names that it may mean."""
    if is_pattern(data):
        return UserError(
            f"--data {data} names no file",
            "a pattern of existing .tar or .parquet files",
            "check the path, and put the pattern in quotes",
        )
    if data == IN_MEMORY:
        return UserError(
            "the images of training were passed in Python, and are in no file",
            KINDS,
            "pass them in Python again, or name the images of a folder",
        )
    path = Path(data).expanduser()
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    folders = [str(path.with_name(sibling.name)) for sibling in siblings if sibling.is_dir()]
    similar = difflib.get_close_matches(data, folders, n=3)
    do = did_you_mean(data, [*similar, "digits"], "check the path")
    return UserError(f"--data {data} is neither `digits` nor a folder", KINDS, do)
