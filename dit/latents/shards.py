"""Shards of latents on disk: what such a folder holds, and how `dit encode` writes it.

encoding.json     what is being encoded and how; written first, so that a rerun can tell whether it fits
shard-00000.npy   [n, F, 2C, h, w] float16: n images, F = 2 with mirrored ones, else 1
shard-00000.json  count, SHA-256 and sums of that shard; written after it, so it says that it is complete. Of a
                  stream also what its images are labelled, and where the stream goes on
labels.npy        [N] int64
index.json        everything a reader needs; written last
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from dit.errors import UserError
from dit.latents.moments import MomentSums
from dit.utils.files import LOCK, sha256, write_atomically, write_json
from dit.utils.image_size import Size, sides, size_of

ENCODING, INDEX, LABELS = "encoding.json", "index.json", "labels.npy"
NOTE_KEYS = {"file", "count", "sha256", "values", "first", "second"}
AGAIN = "run dit encode again: it makes damaged files anew"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What a folder of shards holds; a rerun continues it only if all of this is the same."""

    vae: str
    checksum: str | None  # SHA-256 of the autoencoder's weights
    image_size: int | list[int]
    flips: bool
    count: int | None  # images; of a stream that shows at the end
    shard_size: int
    fingerprint: str  # of the names and order of the images
    captions: bool = False  # whether classes are captions; not said by folders of earlier versions

    def indices(self, shard: int) -> np.ndarray:
        """The images of a shard."""
        assert self.count is not None, "of a stream nobody knows"
        return np.arange(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


def plain_size(size: Size) -> int | list[int]:
    """A size as JSON gives it back."""
    found = size_of(*sides(size))
    return found if isinstance(found, int) else list(found)


def claim(root: Path, encoding: Encoding) -> None:
    """Say in an empty folder what is going to be in it; where that is said already, leave it.

    Raises:
        UserError: as `check_folder`.
    """
    check_folder(root, encoding)
    if not holds_latents(root):
        write_json(root / ENCODING, dataclasses.asdict(encoding))


def check_folder(root: Path, encoding: Encoding) -> None:
    """Whether this encoding may go there: a new folder, an empty one, or one that it was begun in.

    Raises:
        UserError: a file, a folder of something else, or of another encoding, which is named with both values.
    """
    if root.exists() and not root.is_dir():
        raise UserError(
            f"--out {root} is a file", "a folder, new or made by dit encode", "choose another --out"
        )
    if holds_latents(root):
        _check_same(root, encoding)
        return
    for path in root.iterdir() if root.exists() else ():
        if path.name != LOCK and not path.name.startswith(
            f".{ENCODING}."
        ):  # what a killed process leaves
            raise UserError(
                f"--out {root} holds {path.name} and no {ENCODING}",
                "a folder that is new, empty or made by dit encode",
                "choose another --out",
            )


def _check_same(root: Path, encoding: Encoding) -> None:
    found, values = read_json(root / ENCODING, "choose another --out"), dataclasses.asdict(encoding)
    found.setdefault("captions", False)
    different = [name for name in values if found.get(name) != values[name]]
    if encoding.checksum is not None and "vae" in different:
        different.remove("vae")  # the checksum decides, wherever the file lies
    if different and {"count", "fingerprint"}.issuperset(different) and not (root / INDEX).exists():
        raise UserError(
            f"the image files changed since the unfinished latents in {root} were begun "
            f"({found.get('count')} then, {encoding.count} now)",
            "files of the same names, to continue",
            "put back what was deleted, renamed or added, or choose another --out to begin again",
        )
    for name in different:
        raise UserError(
            f"{root} holds latents with {name} {found.get(name)}, not {values[name]}",
            "an empty folder, or one begun with the same data and settings",
            "choose another --out",
        )


def is_complete(root: Path, shard: int) -> bool:
    """Whether the shard is there and has the bytes that were written."""
    path = _shard_path(root, shard)
    try:
        note = read_json(_note_path(root, shard))
    except (OSError, UserError):
        return False
    return path.is_file() and note.keys() >= NOTE_KEYS and note["sha256"] == sha256(path)


def begun(root: Path) -> int:
    """How many shards there are up to the last, complete or not."""
    return max(
        (int(path.stem.removeprefix("shard-")) + 1 for path in root.glob("shard-*.json")), default=0
    )


def read_note(root: Path, shard: int) -> dict[str, Any]:
    """What is written beside a complete shard."""
    return read_json(_note_path(root, shard))


def write_shard(
    root: Path,
    shard: int,
    batches: Iterable[Tensor],
    view: tuple[int, ...],
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Write one shard, which appears when it is whole.

    Args:
        batches: moments [B, F, 2C, h, w], in all as many as the shard has.
        view: (F, 2C, h, w).
        more: for the note, asked for once all batches are written.
    """
    path = _shard_path(root, shard)
    beside, sums = path.with_suffix(".npy.tmp"), []

    def stored() -> Iterator[np.ndarray]:
        for batch in batches:
            rows = batch.numpy().astype(np.float16)
            sums.append(MomentSums.of(rows))
            yield rows

    count = _write_array(beside, stored(), np.dtype(np.float16), view)
    _note_path(root, shard).unlink(missing_ok=True)  # it spoke of the shard that is replaced now
    beside.replace(path)
    total = sum(sums[1:], sums[0])
    note = {"file": path.name, "count": count, "sha256": sha256(path), "values": total.count}
    statistics = {"first": total.first.tolist(), "second": total.second.tolist()}
    write_json(_note_path(root, shard), note | statistics | more())


def write_index(
    root: Path,
    encoding: Encoding,
    shards: int,
    classes: list[str],
    labels: Iterable[np.ndarray],
    shape: tuple[int, int, int],
) -> int:
    """Finish the folder, once all shards are complete.

    Args:
        labels: int64, of all images in their order, in any parts.

    Returns:
        How many images there are.
    """
    keys = ("file", "count", "sha256", "values", "first", "second")
    notes = [{key: read_note(root, shard)[key] for key in keys} for shard in range(shards)]
    sums = [MomentSums(n["values"], np.array(n["first"]), np.array(n["second"])) for n in notes]
    mean, std = sum(sums[1:], sums[0]).statistics()
    with write_atomically(root / LABELS) as beside:
        count = _write_array(beside, labels, np.dtype(np.int64), ())
    assert count == sum(note["count"] for note in notes), "a label for each image"
    listed = [{key: note[key] for key in ("file", "count", "sha256")} for note in notes]
    index = {
        "count": count,
        "shape": shape,
        "classes": classes,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "labels_sha256": sha256(root / LABELS),
        "shards": listed,
    }
    write_json(root / INDEX, dataclasses.asdict(encoding) | index)
    return count


def _write_array(
    file: Path, parts: Iterable[np.ndarray], dtype: np.dtype, row: tuple[int, ...]
) -> int:
    """An .npy file from its parts [n, *row], of which only one is in memory; how many rows it has."""
    count = 0
    with file.open("wb") as opened:
        _write_header(opened, (0, *row), dtype)
        start = opened.tell()
        for part in parts:
            assert part.shape[1:] == row, f"{part.shape} for rows {row}"
            opened.write(np.ascontiguousarray(part, dtype).data)
            count += len(part)
        opened.seek(0)
        _write_header(opened, (count, *row), dtype)
        assert opened.tell() == start, "headers have room for any number of rows"
    return count


def _write_header(opened: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        opened, {"descr": descr, "fortran_order": False, "shape": shape}
    )


def holds_latents(root: Path) -> bool:
    """Whether `dit encode` wrote, or began to write, this folder."""
    return (root / ENCODING).is_file()


def _shard_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:05d}.npy"


def _note_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:05d}.json"


def read_json(path: Path, do: str = AGAIN) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})", "a JSON file", do) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (a {type(values).__name__})", "a JSON object", do)
    return values
