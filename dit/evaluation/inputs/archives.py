"""Opening .npz files, with every mistake named and no pickle loaded."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dit.errors import UserError

BROKEN = (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
"""What zipfile and NumPy raise on damaged archives."""
MAPPED_FROM = (
    1 << 28
)  # bytes of an array that is left on the disk: 50,000 images of 256x256 are 9.8 GB
BLOCK = 1 << 22
TO_NPZ = (
    """python -c "import pickle, numpy; d = pickle.load(open('{0}.pkl', 'rb')); numpy.savez('{0}.npz', """
    """**{{f'{{m}}/{{k}}': v for m in d if isinstance(d[m], dict) for k, v in d[m].items()}}, """
    """**{{m: v for m, v in d.items() if not isinstance(v, dict)}})\""""
)


def open_npz(path: Path) -> Any:
    """An .npz file, to read arrays from.

    Raises:
        UserError: missing, damaged, or a pickle.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if path.suffix == ".pkl" or start[:1] == b"\x80":
            raise _pickled(path)
        if start != b"PK":
            raise ValueError("not a zip archive")
        return np.load(path, allow_pickle=False)
    except BROKEN as error:
        raise UserError(
            f"{path} can not be read ({error})",
            "an .npz file written by numpy.savez",
            "check the path or write the file again",
        ) from error


def read_array(file: Any, path: Path, key: str) -> np.ndarray:
    """An array of an open .npz file; a large one that is not compressed stays on the disk until it is looked at.

    Raises:
        UserError: missing, damaged, or a pickle.
    """
    if key not in file.files:
        raise UserError(
            f"{path} holds {', '.join(file.files) or 'nothing'}",
            f"an array {key}",
            "images: arr_0 [N, H, W, 3]; statistics: mu [D] and sigma [D, D]",
        )
    try:
        member = file.zip.getinfo(key if key in file.zip.namelist() else f"{key}.npy")
        large = member.file_size >= MAPPED_FROM and member.compress_type == zipfile.ZIP_STORED
        array = _map(file.zip, path, member) if large else file[key]
    except BROKEN as error:
        raise UserError(
            f"{key} in {path} can not be read ({error})",
            "an intact array of plain numbers",
            "write the file again; pickled objects are never loaded",
        ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"{key} in {path} is no array", "arrays written by numpy.savez", "write the file again"
        )
    return array


def _map(archive: zipfile.ZipFile, path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """An uncompressed member as a view of the file, once its checksum is right."""
    with archive.open(member) as opened:
        while opened.read(BLOCK):
            pass  # zipfile compares the checksum at the end
    with path.open("rb") as raw:
        raw.seek(
            member.header_offset + 26
        )  # of the local header of 30 bytes, two names of varying length behind it
        raw.seek(member.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4))))
        version = np.lib.format.read_magic(raw)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(raw)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        return np.memmap(path, dtype, "c", raw.tell(), shape, "F" if fortran else "C")


def _pickled(path: Path) -> UserError:
    do = f"if you trust whoever made it, convert it: {TO_NPZ.format(path.with_suffix(''))}"
    return UserError(
        f"{path} is a pickle, which can run any code when it is loaded", "an .npz file", do
    )
