"""Files: hashes, and writing so that a half-written file is never seen."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from dit.errors import UserError

LOCK = ".lock"  # in folders that one process at a time may write to


def shell_quote(name: object) -> str:
    """A path or name as one types it in a shell."""
    return shlex.quote(str(name))


def sha256(file: Path) -> str:
    """Of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Let an error of the system name `file`, where it names none: the system does so only where a file is opened."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


@contextmanager
def write_atomically(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to; it takes the place of `file` when the block ends well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with named(file):
            yield beside
            os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, to outlast a power failure."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it.

    Raises:
        UserError: a file is in the way, or the place is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(
            f"--out {folder} is a file", "a folder, new or existing", "pass another --out"
        ) from None
    except OSError as error:
        raise UserError(
            f"--out {folder} can not be made ({error.strerror})",
            "a writable place",
            "pass another --out",
        ) from None


def require_free_space(folder: Path) -> None:
    """Make sure that `make_folder` will succeed, before that has cost any work; nothing is made.

    Raises:
        UserError: a file is in the way, or the place is not writable.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(
            f"--out {folder} is a file"
            if there == folder
            else f"--out {folder} lies in {there}, a file",
            "a folder, new or existing",
            "pass another --out",
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"--out {folder} can not be written to", "a writable place", "pass another --out"
        )


def require_writable(file: Path, kind: str) -> None:
    """Make sure that `--out FILE` can be written, before that has cost any work.

    Args:
        kind: what it ends in, such as .json.

    Raises:
        UserError: a folder is in the way, or the place is not writable.
    """
    if file.is_dir():
        raise UserError(
            f"--out {file} is a folder", f"a {kind} file", f"pass --out {file}/NAME{kind}"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise UserError(
            f"--out {file} can not be written ({error.strerror})",
            f"a {kind} file in a writable place",
            "pass another --out",
        ) from None


def write_json(file: Path, values: Any) -> None:
    """Readable, strict JSON (NaN is an error), written whole or not at all."""
    with write_atomically(file) as beside:
        beside.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


@contextmanager
def reraise_as_user_error(file: Path, expected: str, do: str) -> Iterator[None]:
    """Say of any failure to read and understand `file` that it is damaged."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is missing or damaged ({type(error).__name__}: {error})", expected, do
        ) from None
