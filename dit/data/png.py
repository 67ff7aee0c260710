"""The chunks of PNG files: checksums of pixels are compared, broken metadata is dropped."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TRANSPARENCY = b"tRNS"  # the only chunk in small letters that changes pixels
TURNS = {  # where programs keep the orientation: chunk, and how its content starts
    b"eXIf": b"",
    b"iTXt": b"XML:com.adobe.xmp\0",
    b"tEXt": b"Raw profile type exif\0",
    b"zTXt": b"Raw profile type exif\0",
}
MOST_METADATA = 1 << 16  # bytes of a chunk


def read_png(file: BinaryIO) -> BinaryIO:
    """Return a PNG file with its pixels and orientation, but without other metadata.

    Pillow refuses an image for damaged or large texts, and it accepts changed pixels where
    decompression happens to succeed.

    Args:
        file: at its start.

    Raises:
        ValueError: a chunk of pixels is damaged.
    """
    kept = io.BytesIO()
    kept.write(file.read(len(SIGNATURE)))
    for kind, length in _chunk_heads(file):
        # small first letter: metadata that a reader may ignore
        is_metadata = kind[:1].islower() and kind != TRANSPARENCY
        if is_metadata and (kind not in TURNS or length > MOST_METADATA):
            file.seek(length + 4, io.SEEK_CUR)
            continue

        content = file.read(length)
        checksum = file.read(4)
        intact = checksum == struct.pack(">I", zlib.crc32(kind + content))
        if is_metadata and not (intact and content.startswith(TURNS[kind])):
            continue
        if not intact:
            where = kind.decode("latin-1")
            raise ValueError(f"its pixels are damaged: the checksum of chunk {where} differs")
        kept.write(struct.pack(">I", length) + kind + content + checksum)
    kept.seek(0)
    return kept


def _chunk_heads(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield type and length of each chunk before the end; the caller moves past its content."""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":  # a mark without content, which Pillow does not need
            return
        yield kind, length
