"""Files: hashes, checks of output paths, and atomic writing."""

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

FOLDER, PLACE = "a folder, new or existing", "a writable place"
LOCK = ".lock"  # in folders that one process at a time may write to


def shell_quote(name: object) -> str:
    """Quote a path or name for a shell."""
    return shlex.quote(str(name))


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_checksum(checksum: str | None) -> str:
    """Return the start of a network's SHA-256; None is of one without weights, as `identity`."""
    return f"SHA-256 {checksum[:8]}" if checksum else "no weights"


# -- writing ---------------------------------------------------------------------------------------


@contextmanager
def name_file_in_errors(file: Path) -> Iterator[None]:
    """Add `file` to system errors without a file name: only opening a file sets one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


@contextmanager
def write_atomically(file: Path) -> Iterator[Path]:
    """Yield a temporary path beside `file`; it replaces `file` if the block succeeds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with name_file_in_errors(file):
            yield temporary
            os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, values: Any) -> None:
    """Write readable, strict JSON (NaN is an error), atomically."""
    with write_atomically(file) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def sync_to_disk(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk, to survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- output paths ----------------------------------------------------------------------------------


def create_folder(folder: Path) -> None:
    """Create a folder for results, and its parents."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise _bad_out(f"{folder} is a file", FOLDER) from None
    except OSError as error:
        raise _bad_out(f"{folder} cannot be created ({error.strerror})", PLACE) from None


def require_creatable_folder(folder: Path) -> None:
    """Check that `create_folder` will succeed, before costly work; create nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        file = "is a file" if existing == folder else f"lies in {existing}, a file"
        raise _bad_out(f"{folder} {file}", FOLDER)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _bad_out(f"{folder} cannot be written to", PLACE)


def require_writable_file(file: Path, kind: str) -> None:
    """Check that `--out FILE` can be written, before costly work.

    Args:
        kind: its extension, such as .json.
    """
    if file.is_dir():
        do = f"pass --out {file}/NAME{kind}"
        raise UserError(f"--out {file} is a folder", f"a {kind} file", do)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=file.parent).close()
    except OSError as error:
        given = f"{file} cannot be written ({error.strerror})"
        raise _bad_out(given, f"a {kind} file in {PLACE}") from None


def _bad_out(given: str, expected: str) -> UserError:
    return UserError(f"--out {given}", expected, "pass another --out")


# -- reading ---------------------------------------------------------------------------------------


@contextmanager
def reraise_as_user_error(file: Path, expected: str, do: str) -> Iterator[None]:
    """Turn any failure to read or parse `file` into a UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is missing or damaged ({type(error).__name__}: {error})", expected, do
        ) from None
