"""The files of a folder of latents, and how `dit encode` writes them.

encoding.json     what is being encoded and how; written first, and compared when a run continues
shard-00000.npy   [n, F, 2C, h, w] float16: n images, F = 2 with mirrored ones, else 1
shard-00000.json  the shard's *note*: count, SHA-256 and sums; which images it was made of, and
                  which of them were left out as damaged; written last, it marks a complete shard.
                  Of a stream instead the labels, and the position of the next image
labels.npy        [N] int64
index.json        everything a reader needs; written at the end
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
from torch import Tensor

from dit.config.validation import require_none_of
from dit.data.image_files import reading_threads
from dit.data.images import ImageFiles, Images
from dit.data.labels import Label
from dit.errors import UserError
from dit.latents.moments import MomentSums
from dit.utils.files import sha256, write_atomically, write_json
from dit.utils.image_size import Size
from dit.utils.outputs import require_outside, require_own_folder
from dit.utils.typed_json import read_json

ENCODING, INDEX, LABELS = "encoding.json", "index.json", "labels.npy"
WRITTEN = "the note of a shard that dit encode wrote"
FORMAT = 2  # of encoding.json and index.json; version 1 did not name it
ADM_CROP = "ADM's"  # the rule by which images were cropped, the only one so far
DATA_KEYS = ("count", "fingerprint")  # of encoding.json, about the images
# of encoding.json, to find the images again: they may move
SOURCE_KEYS = ("format", "data", "image_column", "label_column", "crop")
ENCODE_AGAIN = "run dit encode again: it replaces damaged files"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The content of a folder of shards; a rerun continues it only if the settings are the same.

    Images may change: a rerun keeps the shards of those that stayed. Not those of a stream.
    """

    vae: str
    checksum: str | None  # SHA-256 of the autoencoder's weights
    image_size: Size
    flips: bool
    count: int | None  # images; None for a stream, whose length is not known
    shard_size: int
    fingerprint: str  # of the names and order of the images
    captions: bool = False  # whether classes are captions; not in folders of earlier versions
    data: str | None = None  # where the images were; not in folders of earlier versions
    # the flags of dit encode, and how the images were cropped; not in folders of format 1
    image_column: str | None = None
    label_column: str | None = None
    crop: str = ADM_CROP
    format: int = 1

    def __post_init__(self) -> None:
        later = f"latents of format {self.format}"
        expected = f"at most {FORMAT}: a later version of dit wrote them"
        require_none_of([(self.format > FORMAT, later, expected, "update dit")])

    def indices(self, shard: int) -> np.ndarray:
        """Return the images of a shard."""
        assert self.count is not None, "unknown for a stream"
        return np.arange(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


class ListedShard(TypedDict):
    """What index.json has of each shard."""

    file: str
    count: int
    sha256: str


class Note(ListedShard):
    """The note of a shard: also sums over its moments, per channel."""

    values: int
    first: list[float]
    second: list[float]


class ImageNote(Note, total=False):
    """The note of a shard of images: which they are, and the damaged ones that were left out."""

    stamp: str  # not in folders of earlier versions
    content: str
    skipped: dict[str, int]


class Position(TypedDict):
    """A position in a stream."""

    rows: int
    state: dict[str, Any]


class StreamNote(Note):
    """The note of a shard of a stream: also its labels, and the position of the next image."""

    labels: list[Label]
    position: Position


# -- starting and continuing -----------------------------------------------------------------------


def claim(root: Path, encoding: Encoding, replaced: bool = False) -> None:
    """Write encoding.json, into a new folder or one to continue.

    Args:
        replaced: whether shards are replaced by others, which the index does not fit.
    """
    check_folder(root, encoding)
    if replaced:
        (root / INDEX).unlink(missing_ok=True)
    if describe_change(root, encoding):
        _forget_shards_without_stamp(root)
    write_json(root / ENCODING, dataclasses.asdict(encoding))


def _forget_shards_without_stamp(root: Path) -> None:
    """Remove the notes of earlier versions, before encoding.json has the names of other images.

    Those names are all that tells which images such shards were made of.
    """
    for file in root.glob("shard-*.json"):
        try:
            note = read_json(file, ImageNote, WRITTEN, ENCODE_AGAIN)
        except UserError:
            continue  # its shard is not complete
        if "stamp" not in note:
            file.unlink()


def check_folder(root: Path, encoding: Encoding) -> None:
    """Refuse a folder among the images, and one that is not new, empty, or of this encoding."""
    require_outside(root, encoding.data)
    is_own = holds_latents(root)
    require_own_folder(root, ENCODING, "dit encode", is_own)
    if is_own:
        _check_same(root, encoding)


def _check_same(root: Path, encoding: Encoding) -> None:
    values = dataclasses.asdict(encoding)
    stored = dataclasses.asdict(read_encoding(root))
    compared = [name for name in values if name not in SOURCE_KEYS]
    different = [name for name in compared if stored.get(name) != values[name]]
    if encoding.checksum is not None and "vae" in different:
        different.remove("vae")  # equal checksums suffice: its folder may have moved
    if None not in (stored.get("count"), encoding.count):
        # images that are no stream are compared shard by shard
        different = [name for name in different if name not in DATA_KEYS]
    if different:
        name = different[0]
        raise UserError(
            f"{root} holds latents with {name} {stored.get(name)}, not {values[name]}",
            "an empty folder, or one begun with the same data and settings",
            "choose another --out",
        )


def read_encoding(root: Path) -> Encoding:
    """Return what `dit encode` wrote, or began to write, to a folder."""
    return read_json(
        root / ENCODING, Encoding, "what dit encode began to encode", "choose another --out"
    )


def describe_change(root: Path, encoding: Encoding) -> str:
    """Return how number or names of the images differ from those of a folder, or ""."""
    if not holds_latents(root):
        return ""
    stored = dataclasses.asdict(read_encoding(root))
    if stored.get("count") != encoding.count:
        return f"{stored.get('count')} then, {encoding.count} now"
    return "other names" if stored.get("fingerprint") != encoding.fingerprint else ""


def skipped_images(root: Path) -> list[int]:
    """Return which images were left out as damaged, by their place among all."""
    notes = (read_note(root, shard) for shard in range(count_begun(root)))
    return sorted(index for note in notes for index in note.get("skipped", {}).values())


def is_of_same_data(root: Path, encoding: Encoding) -> bool:
    """Return whether the images of a folder are known to come from where these lie."""
    data = read_encoding(root).data if holds_latents(root) else None
    return data is not None and data == encoding.data


def holds_latents(root: Path) -> bool:
    """Return whether `dit encode` wrote, or began to write, a folder."""
    return (root / ENCODING).is_file()


def is_complete(root: Path, shard: int) -> bool:
    """Return whether a shard exists with the bytes that were written."""
    path = _shard_path(root, shard)
    try:
        note = read_note(root, shard)
    except UserError:
        return False
    return path.is_file() and note["sha256"] == sha256(path)


def count_begun(root: Path) -> int:
    """Return the number of shards up to the last one, complete or not."""
    numbers = (int(path.stem.removeprefix("shard-")) for path in root.glob("shard-*.json"))
    return max(numbers, default=-1) + 1


# -- which images a shard was made of --------------------------------------------------------------


def describe_images(images: Images, indices: Sequence[int]) -> dict[str, str]:
    """Return entries of a note that identify these images.

    The stamp has names, sizes and times of files. The content is a SHA-256 of their bytes, since
    copied files have the content of the originals, but not their time.
    """
    note = {"stamp": images.stamp(indices)}
    if isinstance(images, ImageFiles):
        note["content"] = _hash_content(images, indices)
    return note


def is_made_of(note: ImageNote, images: Images, indices: Sequence[int]) -> bool:
    """Return whether a shard with this note was made of these images."""
    if note["stamp"] == images.stamp(indices):
        return True
    return isinstance(images, ImageFiles) and note.get("content") == _hash_content(images, indices)


def _hash_content(images: ImageFiles, indices: Iterable[int]) -> str:
    total = hashlib.sha256()
    with reading_threads() as pool:
        for digest in pool.map(partial(_hash_file, images), indices):
            total.update(digest)
    return total.hexdigest()


def _hash_file(images: ImageFiles, index: int) -> bytes:
    try:
        with images.open(index) as file:
            return hashlib.sha256(file.read()).digest()
    except (OSError, ValueError):
        return b"unreadable"  # the check of images names it


# -- writing ---------------------------------------------------------------------------------------


def write_shard(
    root: Path,
    shard: int,
    batches: Iterable[Tensor],
    view: tuple[int, ...],
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Write one shard, which appears only once it is complete.

    Args:
        batches: moments [B, F, 2C, h, w] of the shard's images.
        view: (F, 2C, h, w).
        more: further entries of the note, computed after all batches are written.
    """
    path = _shard_path(root, shard)
    channels = view[1] // 2
    # a shard may be empty, if all of its images are damaged
    sums = [MomentSums(0, np.zeros(channels), np.zeros(channels))]

    def stored() -> Iterator[np.ndarray]:
        for batch in batches:
            # sums of the rounded values: statistics are those of the stored latents
            rows = batch.numpy().astype(np.float16)
            sums.append(MomentSums.of(rows))
            yield rows

    # a name without a number: a rerun, on any machine, replaces what a killed process left
    with write_atomically(path, f"{path.name}.tmp") as temporary:
        count = _write_array(temporary, stored(), np.dtype(np.float16), view)
        # the old note describes the shard that is replaced now
        _note_path(root, shard).unlink(missing_ok=True)

    total = MomentSums.total(sums)
    note = {
        "file": path.name,
        "count": count,
        "sha256": sha256(path),
        "values": total.count,
        "first": total.first.tolist(),
        "second": total.second.tolist(),
    }
    write_json(_note_path(root, shard), note | more())


def remove_shards(root: Path, first: int) -> None:
    """Remove the shards from number `first` on, which images that are gone needed."""
    for shard in range(first, count_begun(root)):
        _note_path(root, shard).unlink(missing_ok=True)
        _shard_path(root, shard).unlink(missing_ok=True)


def write_index(
    root: Path,
    encoding: Encoding,
    shards: int,
    classes: list[str],
    labels: Iterable[np.ndarray],
    shape: tuple[int, int, int],
) -> int:
    """Finish the folder, once all shards are complete; return the number of images.

    Args:
        labels: int64, of all images in their order, in any parts.
    """
    notes = [read_note(root, shard) for shard in range(shards)]
    for shard, note in enumerate(notes):
        channels = {len(note["first"]), len(note["second"])}
        if channels != {shape[0]}:
            file = _note_path(root, shard)
            given = f"{file} has sums of {min(channels)} channels"
            raise UserError(given, f"those of {shape[0]}", f"remove it, and {ENCODE_AGAIN}")
    sums = [MomentSums(n["values"], np.array(n["first"]), np.array(n["second"])) for n in notes]
    mean, std = MomentSums.total(sums).statistics()

    with write_atomically(root / LABELS) as temporary:
        count = _write_array(temporary, labels, np.dtype(np.int64), ())
    assert count == sum(note["count"] for note in notes), "a label for each image"

    index = {
        "count": count,
        "shape": shape,
        "classes": classes,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "labels_sha256": sha256(root / LABELS),
        "shards": [
            ListedShard(file=note["file"], count=note["count"], sha256=note["sha256"])
            for note in notes
        ],
    }
    write_json(root / INDEX, dataclasses.asdict(encoding) | index)
    return count


def _write_array(
    file: Path, parts: Iterable[np.ndarray], dtype: np.dtype, row: tuple[int, ...]
) -> int:
    """Write an .npy file from parts [n, *row], one in memory at a time; return its rows."""
    count = 0
    with file.open("wb") as opened:
        _write_header(opened, (0, *row), dtype)
        start = opened.tell()
        for part in parts:
            assert part.shape[1:] == row, f"{part.shape} for rows {row}"
            opened.write(np.ascontiguousarray(part, dtype).data)
            count += len(part)

        # the number of rows is known only now; numpy pads headers, so that it fits
        opened.seek(0)
        _write_header(opened, (count, *row), dtype)
        assert opened.tell() == start, "headers fit any number of rows"
    return count


def _write_header(opened: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, header)


# -- reading ---------------------------------------------------------------------------------------


def read_note(root: Path, shard: int) -> ImageNote:
    """Return the note of a complete shard."""
    return read_json(_note_path(root, shard), ImageNote, WRITTEN, ENCODE_AGAIN)


def read_stream_note(root: Path, shard: int) -> StreamNote:
    """Return the note of a complete shard of a stream."""
    file = _note_path(root, shard)
    return read_json(file, StreamNote, WRITTEN, f"remove {file}: its shard is then encoded again")


def _shard_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:05d}.npy"


def _note_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:05d}.json"
