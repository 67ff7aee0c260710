"""Open a file of weights that another program wrote, or say what the file is instead.

No code in a file is run. Tensors stay on the disk until they are used.
"""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from dit.errors import UserError
from dit.utils.files import command_line, shell_quote
from dit.utils.typed_json import read_json

READABLE = "a DiT, SiT, REPA or LightningDiT"
WANTED = f"a .pt or .safetensors file of {READABLE}, or a DiT's folder of diffusers"
DOWNLOAD = "download it again and compare its size"

# What the first bytes of a file say: a pattern, what the file is, and what to do.
FIRST_BYTES = [
    (rb"$", "is empty", DOWNLOAD),
    (
        rb"version https://git-lfs",
        "is a Git LFS pointer, not the file itself",
        "fetch it: git lfs pull",
    ),
    (
        rb"(?i)\s*<(!doctype html|html|head)",
        "is an HTML page, not the file itself",
        "download the file that the page links to",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|(?s:.{257})ustar", "is a packed archive", "unpack it first"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "is an image", "check the path"),
    (rb"\x89HDF", "is an HDF5 file, as Keras writes them", "pass a file of PyTorch"),
]


class DiffusersConfig(TypedDict):
    """What is read of a JSON file that diffusers wrote."""

    _class_name: str


def open_foreign(file: Path) -> Any:
    """Return what a file of PyTorch or safetensors holds: usually dictionaries of tensors.

    Raises:
        UserError: no such file, damaged, would run code, one of ours, or another kind of file.
    """
    if file.is_dir():
        raise _folder(file)
    if not file.is_file():
        raise UserError(f"no file {file}", WANTED, "check the path")

    with file.open("rb") as opened:
        head = opened.read(512)
    for pattern, given, do in FIRST_BYTES:
        if re.match(pattern, head):
            raise UserError(f"{file} {given}", WANTED, do)

    # eight bytes with the length of a JSON object, whatever the file's extension
    if head[8:9] == b"{":
        return _open_safetensors(file)
    if zipfile.is_zipfile(file):
        _refuse_other_archives(file)
    return _open_pickle(file)


def _open_safetensors(file: Path) -> Any:
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
        if "DCP_VERSION" in header:
            raise UserError(
                f"{file} is a part of a training checkpoint",
                WANTED,
                "pass the run to sample.py or evaluate.py, without conversion",
            )
        if "dit" in header:
            raise UserError(
                f"{file} is a weights file of this package",
                WANTED,
                f"pass it without conversion: {command_line('sample')} --run {shell_quote(file)}",
            )
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} cannot be read ({error})", "a complete .safetensors file", DOWNLOAD
        ) from None


def _open_pickle(file: Path) -> Any:
    try:
        # training scripts save their flags, a Namespace, beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            mmap = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can fail in any way
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise UserError(
                f"{file} would run code when it is loaded ({code[1]})",
                "tensors and plain values only",
                "do not trust this file; ask for weights in .safetensors",
            ) from None
        raise UserError(
            f"{file} cannot be read", "a complete .pt file written by torch.save", DOWNLOAD
        ) from None


def _refuse_other_archives(file: Path) -> None:
    """Refuse a zip file that torch.save did not write."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return
    first = ", ".join(names[:3]) or "nothing"
    kind = "a NumPy archive" if first.endswith(".npy") else "a zip archive"
    raise UserError(f"{file} is {kind} of {first}", WANTED, "unpack it, or check the path")


def _folder(folder: Path) -> UserError:
    """Return the error for a folder, which says whose it is."""
    for name in ("model_index.json", "config.json"):
        try:
            made_by = read_json(folder / name, DiffusersConfig, "", "")["_class_name"]
        except UserError:
            continue
        return UserError(
            f"{folder} is diffusers' {made_by}",
            WANTED,
            "pass the file of the original release, or the folder of a DiT's pipeline, which has "
            "transformer, scheduler and vae in it",
        )
    if (folder / "checkpoints").is_dir() or (folder / "meta.json").is_file():
        return UserError(
            f"{folder} is a run or a checkpoint of this package",
            WANTED,
            f"pass it without conversion: {command_line('sample')} --run {shell_quote(folder)}",
        )
    return UserError(f"{folder} is a folder", WANTED, "pass a file in it")
