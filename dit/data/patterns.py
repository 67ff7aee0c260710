"""Files by pattern: braces as in a shell, and wildcards."""

from glob import glob, has_magic
from pathlib import Path


def named_files(pattern: str) -> list[Path]:
    """The files that `a-{000..003}.tar`, `folder/*.parquet` or a plain path stands for; none where it is of no file.

    Braces keep their order, and what they stand for need not be there; wildcards give what is there, in alphabetical
    order.
    """
    from braceexpand import braceexpand

    path = Path(pattern).expanduser()
    if path.exists():
        return [path] if path.is_file() else []
    if not is_pattern(pattern):
        return []
    try:
        names = list(braceexpand(str(path)))
    except ValueError:  # braces that do not match
        return []
    found = [sorted(glob(name)) if has_magic(name) else [name] for name in names]
    return [Path(name) for some in found for name in some]


def is_pattern(text: str) -> bool:
    """Whether it has braces or wildcards."""
    return "{" in text or has_magic(text)
