"""Checks of output paths before costly work: can they be written, and whose are they?

No command overwrites what it did not make. A file says who wrote it: by its contents where they are
a record (JSON, .npz, weights), else by its `signature`, which is the generator of an HTML page, the
Software entry of a PNG and the comment of a GIF. A folder is a command's own by the record in it.
"""

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from dit.errors import UserError
from dit.utils.files import real_path
from dit.utils.typed_json import read_json

FOLDER, PLACE = "a folder, new or existing", "a writable place"
ENCODING = "encoding.json"  # in folders of latents
HEAD = 4096  # bytes of a file in which its signature lies


# -- can they be written? --------------------------------------------------------------------------


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


def require_outside(out: Path, *data: str | Path | None) -> None:
    """Refuse an output in a folder of images, where its pictures would be images or a class.

    Args:
        data: what `--data` names, of the command or of its run; folders of latents do no harm.
    """
    path = real_path(out)
    for name in data:
        if name is None or name == "digits":
            continue
        folder = real_path(name)
        inside = folder.is_dir() and folder in (path, *path.parents)
        if inside and not (folder / ENCODING).is_file():
            raise UserError(
                f"--out {out} lies in {name}, a folder of images",
                "a folder elsewhere: its pictures would be data there, or a class",
                "choose another --out",
            )


def _bad_out(given: str, expected: str) -> UserError:
    return UserError(f"--out {given}", expected, "pass another --out")


# -- whose are they? -------------------------------------------------------------------------------


def signature(command: str) -> str:
    """Return the text by which a command recognises a file that it wrote."""
    return f"dit {command}"


def is_signed(file: Path, command: str) -> bool:
    """Whether the head of a file has the signature of a command."""
    with file.open("rb") as opened:
        return signature(command).encode() in opened.read(HEAD)


def is_record(file: Path, keys: Collection[str]) -> bool:
    """Whether a file is a JSON object with these keys."""
    try:
        return read_json(file, dict[str, Any], "", "").keys() >= set(keys)
    except UserError:
        return False


def require_own_file(
    file: Path, command: str, is_own: Callable[[Path], bool] | None = None, flag: str = "--out"
) -> None:
    """Refuse to overwrite a file that the command did not write.

    Args:
        is_own: whether the command wrote an existing file; by its signature unless given.
        flag: which names another file, for the message.
    """
    # also a link to nowhere: somebody made it
    if not os.path.lexists(file):
        return
    if file.is_file() and (is_own(file) if is_own else is_signed(file, command)):
        return
    raise UserError(
        f"{file} exists, and dit {command} did not write it",
        f"a new file, or one of dit {command}",
        f"pass another {flag}, or move that file away",
    )


def require_own_folder(
    folder: Path, record: str, maker: str, is_own: bool, leftovers: Iterable[str] = ()
) -> None:
    """Refuse a folder of something else: neither new, nor empty, nor with the command's record.

    Hidden files do no harm: a killed process leaves its lock and what it was writing.

    Args:
        record: the file that marks a folder of the command, for the message.
        maker: the command, for the message.
        is_own: whether the folder has that record.
        leftovers: names of files that a stopped command leaves without the record.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(
            f"--out {folder} is a file", f"a folder, new or of {maker}", "choose another --out"
        )
    if is_own or not folder.exists():
        return
    for name in sorted(path.name for path in folder.iterdir()):
        if not name.startswith(".") and name not in leftovers:
            raise UserError(
                f"--out {folder} holds {name} and no {record}",
                f"a folder that is new, empty or of {maker}",
                "choose another --out",
            )
