"""Files: names, hashes, and atomic writing."""

import hashlib
import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dit.errors import UserError
from dit.utils.system import NO_FOLLOW

SCRIPTS = ("train.py", "sample.py", "evaluate.py")
SCRIPT = re.compile(r"(?<![\w/.-])(?:python )?(train|sample|evaluate)\.py\b")
LOCK = ".lock"  # in folders that one process at a time may write to


def shell_quote(name: object) -> str:
    """Quote a path or name for a shell; one that is not UTF-8 as bash takes it, $'caf\xe9'."""
    text = str(name)
    if printable(text) == text:
        return shlex.quote(text)
    plain = set(range(32, 127)) - {ord("'"), ord("\\")}
    escaped = [chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in name_to_bytes(text)]
    return f"$'{''.join(escaped)}'"


def command_line(command: str) -> str:
    """Return what starts a command in the way this one was started: `python train.py`, or `dit`."""
    script = Path(sys.argv[0])
    if script.name not in SCRIPTS or f"{command}.py" not in SCRIPTS:
        return f"dit {command}"
    return f"python {shell_quote(script.with_name(f'{command}.py'))}"


def as_started(advice: str) -> str:
    """Return advice that names train.py, sample.py and evaluate.py as they are started here."""
    if Path(sys.argv[0]).name in SCRIPTS:
        return advice
    return SCRIPT.sub(lambda found: command_line(found[1]), advice)


def name_to_bytes(name: str) -> bytes:
    """Return the bytes of a file's name, which need not be UTF-8; for hashes."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, of a JSON file
        return name.encode("utf-8", "backslashreplace")


def real_path(path: str | Path) -> Path:
    """Return the absolute path without links; unlike Path.resolve, of any path, also of a loop."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def printable(name: str) -> str:
    r"""Return a name as text that any program can show; bytes that are not UTF-8 become \xe9.

    Python keeps such bytes as lone surrogates, which no encoder, font or tokenizer takes.
    """
    return name_to_bytes(name).decode("utf-8", "backslashreplace")


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
    """Add `file` to system errors without a file name: only opening a file sets one.

    safetensors wraps such errors in its own; the system's error is raised in its place.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
    except SafetensorError as error:
        code = re.search(r"\b(?:os error|code:) (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(file)) from error


@contextmanager
def write_atomically(file: Path, beside: str | None = None) -> Iterator[Path]:
    """Yield a new, empty file beside `file`; it replaces `file` if the block succeeds.

    A link in the place of `file` is replaced, not followed.

    Args:
        beside: the name of the new file; hidden and of this process unless given.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(beside or f".{file.name}.{os.getpid()}")
    try:
        with name_file_in_errors(file):
            create_new(temporary)
            yield temporary
            os.replace(temporary, file)
    except OSError as error:
        # the name that the user knows
        if error.filename == str(temporary):
            error.filename, error.filename2 = str(file), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically."""
    with write_atomically(file) as temporary:
        temporary.write_bytes(content)


def write_text(file: Path, text: str) -> None:
    """Write a text atomically; names in it need not be UTF-8."""
    write_bytes(file, printable(text).encode())


def create_new(file: Path) -> None:
    """Create an empty file in place of what a killed process, or someone else, left there.

    So writers that open it by name follow no link to another file.
    """
    file.unlink(missing_ok=True)
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def open_lock(file: Path) -> int:
    """Open a file to lock it, and create it if it is missing; return its descriptor.

    What is there stays as it is: a link is not followed, and nothing is truncated.
    """
    try:
        # O_NONBLOCK: opening a device must not wait
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    except OSError as error:
        if not file.is_symlink() and not file.is_dir():
            raise
        raise _bad_lock(file) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _bad_lock(file)
    return descriptor


def _bad_lock(file: Path) -> UserError:
    kinds = {"a link": file.is_symlink(), "a folder": file.is_dir(), "a FIFO": file.is_fifo()}
    kind = next((name for name, applies in kinds.items() if applies), "a device or socket")
    return UserError(
        f"{file} is {kind}",
        "a plain file, which marks that a process is at work",
        "remove it, or choose another --out",
    )


def write_json(file: Path, values: Any) -> None:
    """Write readable, strict JSON (NaN is an error), atomically."""
    write_text(file, json.dumps(values, indent=2, allow_nan=False) + "\n")


def require_file_or_folder(flag: str, path: str) -> None:
    """Refuse an existing pipe, socket or device: reading it may never end, writing replaces it."""
    try:
        mode = os.stat(Path(path).expanduser()).st_mode
    except (OSError, ValueError, RuntimeError):
        return  # not a path, or not there: whoever opens it says so
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(
            f"{flag} {path} is a pipe, a socket or a device".strip(),
            "a file or a folder",
            "write the data to a file first",
        )


# -- reading ---------------------------------------------------------------------------------------


@contextmanager
def reraise_as_user_error(file: Path, expected: str, do: str) -> Iterator[None]:
    """Turn any failure to read or parse `file` into a UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} is missing or damaged ({type(error).__name__}: {error})", expected, do
        ) from None
