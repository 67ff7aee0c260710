"""Networks by name: local folders, or files of the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from dit.errors import UserError, one_line

BUNDLED = ("digits", "tiny", "identity")  # never names of folders


def find_folder(
    flag: str,
    name: str,
    known: str,
    files: str,
    patterns: Sequence[str],
    ignored: Sequence[str] = (),
) -> Path:
    """Return the folder that a flag names, downloaded if necessary.

    Args:
        known: the other values of the flag, for messages.
        files: the files of such a folder, for messages.
        patterns: of the files to download, except those `ignored`.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise UserError(
            f"{flag} {name} is not a folder", f"{known}, or a hub name OWNER/NAME", "check the path"
        )
    return _download(flag, name, files, patterns, ignored)


def absolute_if_local(name: str) -> str:
    """Return the name of a network, of a local folder its absolute path."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name not in BUNDLED and path.is_dir() else name


def _download(
    flag: str, name: str, files: str, patterns: Sequence[str], ignored: Sequence[str]
) -> Path:
    """Return the hub's files in the local cache, downloaded if they are not there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(ignored))
        )
    except Exception as error:  # of many kinds, also of the HTTP library
        raise UserError(
            f"{flag} {name} is neither a local folder nor available from the hub "
            f"({one_line(error)})",
            f"a folder {name} or network access",
            f"copy {files} into a local folder and pass {flag} FOLDER, or fill the hub's cache "
            "on a connected machine and set HF_HOME to it",
        ) from error
