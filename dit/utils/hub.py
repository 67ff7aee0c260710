"""Models by name: a folder here, or files of the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from dit.errors import UserError

BUNDLED = ("digits", "identity")  # names that are of no folder, even where one is called so


def find_folder(
    flag: str,
    name: str,
    known: str,
    files: str,
    patterns: Sequence[str],
    ignored: Sequence[str] = (),
) -> Path:
    """The folder that a flag names, downloaded if need be.

    Args:
        known: what else the flag takes, in words.
        files: what a folder has to hold, in words.
        patterns: of the files to download, but for those `ignored`.

    Raises:
        UserError: no such folder and no name of the hub's kind, or the hub out of reach.
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
    """The name of a network as it holds in any directory: a folder's is its absolute path."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name not in BUNDLED and path.is_dir() else name


def _download(
    flag: str, name: str, files: str, patterns: Sequence[str], ignored: Sequence[str]
) -> Path:
    """The hub's files in the local cache; asks the network only for what is not there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(ignored))
        )
    except (
        Exception
    ) as error:  # the hub's client raises many kinds, those of its HTTP library among them
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{flag} {name} is neither a folder here nor to be had from the hub ({reason})",
            f"a folder {name} or network access",
            f"copy {files} into a local folder and pass {flag} FOLDER, or fill the hub's cache on a "
            "connected machine and set HF_HOME to it",
        ) from error
