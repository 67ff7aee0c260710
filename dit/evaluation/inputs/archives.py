"""Read arrays of .npz files, without ever loading a pickle."""

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dit.distributed.device import free_main_memory
from dit.errors import UserError

BROKEN = (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
"""What zipfile and NumPy raise on damaged archives."""
MAPPED_FROM = 1 << 28  # bytes; 50,000 images of 256x256 take 9.8 GB, which stay on the disk
BLOCK = 1 << 22


def open_npz(path: Path) -> Any:
    """Open an .npz file to read arrays from; refuse pickles."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if path.suffix == ".pkl" or start[:1] == b"\x80":
            raise UserError(
                f"{path} is a pickle, which can run any code when it is loaded",
                "an .npz file",
                "if you trust its author, load it with pickle and write its arrays with "
                "numpy.savez: NETWORK/mu and NETWORK/sigma",
            )
        if start != b"PK":
            raise ValueError("not a zip archive")
        return np.load(path, allow_pickle=False)
    except BROKEN as error:
        raise UserError(
            f"{path} cannot be read ({error})",
            "an .npz file written by numpy.savez",
            "check the path or write the file again",
        ) from error


def read_array(file: Any, path: Path, key: str) -> np.ndarray:
    """Return an array of an open .npz file; large arrays without compression are memory-mapped."""
    if key not in file.files:
        raise UserError(
            f"{path} holds {', '.join(file.files) or 'nothing'}",
            f"an array {key}",
            "images: arr_0 [N, H, W, 3]; statistics: mu [D] and sigma [D, D]",
        )
    try:
        member = file.zip.getinfo(f"{key}.npy")
        _check_size(file.zip, member)
        large = member.file_size >= MAPPED_FROM and member.compress_type == zipfile.ZIP_STORED
        if large:
            return _map(file.zip, path, member)
        _require_memory(member, path, key)
        return file[key]
    except (*BROKEN, KeyError) as error:
        raise UserError(
            f"{key} in {path} cannot be read ({error})",
            "an intact array of plain numbers",
            "write the file again; pickled objects are never loaded",
        ) from error


def _check_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse an array whose header promises another size than the archive has.

    NumPy takes the promised memory before it reads a number.
    """
    with archive.open(member) as stream:
        shape, _, dtype = _read_header(stream)
        promised = math.prod(shape) * dtype.itemsize
        held = member.file_size - stream.tell()
    if promised != held:
        raise ValueError(f"its header promises {promised:,} bytes, the archive has {held:,}")


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order and type of an array; refuse objects, which are pickles."""
    if np.lib.format.read_magic(stream) == (1, 0):
        header = np.lib.format.read_array_header_1_0(stream)
    else:
        header = np.lib.format.read_array_header_2_0(stream)
    if header[2].hasobject:
        raise ValueError("it holds Python objects")
    return header


def _require_memory(member: zipfile.ZipInfo, path: Path, key: str) -> None:
    """Refuse an array that does not fit into memory, as zeros in a small file may."""
    free = free_main_memory()
    if member.file_size > free:
        raise UserError(
            f"{key} in {path} takes {member.file_size / 2**30:,.1f} GiB, from "
            f"{member.compress_size / 2**30:,.3f} GiB in the file",
            f"at most the {free / 2**30:,.1f} GiB of memory that are free",
            "write it by numpy.savez, without compression: such arrays stay on the disk",
        )


def _map(archive: zipfile.ZipFile, path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """Map an array of an archive without compression, once its checksum is verified."""
    with archive.open(member) as stream:
        while stream.read(BLOCK):
            pass  # zipfile compares the checksum at the end

    with path.open("rb") as raw:
        # The local header has 30 bytes; the last four are the lengths of the two fields behind it.
        raw.seek(member.header_offset + 26)
        raw.seek(sum(struct.unpack("<HH", raw.read(4))), 1)
        shape, fortran, dtype = _read_header(raw)
        return np.memmap(path, dtype, "c", raw.tell(), shape, "F" if fortran else "C")
