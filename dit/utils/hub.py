"""Networks by name: local folders, or files of the Hugging Face hub."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dit.errors import UserError, did_you_mean, one_line

BUNDLED = ("digits", "tiny", "identity")  # never names of folders
FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".json")  # never ends of hub names
PATIENCE = 5.0  # seconds in which the hub answers, or counts as out of reach


def find_folder(
    flag: str,
    name: str,
    known: str,
    files: str,
    patterns: Sequence[str],
    ignored: Sequence[str] = (),
    near: str = "",
) -> Path:
    """Return the folder that a flag names, downloaded if necessary.

    Args:
        known: the other values of the flag, for messages.
        files: the files of such a folder, for messages.
        patterns: of the files to download, except those `ignored`.
        near: a value that may have been meant.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        do = did_you_mean(name, [near], "check the path")
        raise UserError(f"{flag} {name} is not a folder", f"{known}, or a hub name OWNER/NAME", do)
    return _download(flag, name, files, patterns, ignored)


def absolute_if_local(name: str) -> str:
    """Return the name of a network, of a local folder its absolute path."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name not in BUNDLED and path.is_dir() else name


def is_hub_name(name: str) -> bool:
    """Whether a name can be OWNER/NAME of the hub, and is no path, nor one in a folder here."""
    match = re.fullmatch(r"(\w[\w.-]*)/(\w[\w.-]*)", name, re.ASCII)
    if not match or name.endswith(FILES):
        return False
    # a path with a mistake is more likely than an owner of the name of a folder here
    return not Path(name).exists() and not Path(match[1]).exists()


def name_in_cache(folder: Path) -> str | None:
    """Return the OWNER/NAME of a folder of the hub's cache: models--OWNER--NAME/snapshots/…."""
    name = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not name.startswith("models--"):
        return None
    return name.removeprefix("models--").replace("--", "/")


def is_downloaded(file: Path) -> bool:
    """Whether a file lies in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE).expanduser().resolve()
    # what links there counts too
    return cache in file.resolve().parents


def is_cached(name: str, files: Iterable[str]) -> bool:
    """Whether the hub's cache has these files; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    # a download that was stopped leaves one of them
    return all(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def is_available(name: str, files: Iterable[str]) -> bool:
    """Whether the hub's cache has these files, or the hub answers that it has their repository."""
    if is_cached(name, files):
        return True
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=PATIENCE)
    except Exception:  # of many kinds, also of the HTTP library
        return False
    return True


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
