"""Shards of latents on disk: what such a folder holds, and how `dit encode` writes it.

    encoding.json     what is being encoded and how; written first, so that a rerun can tell whether it fits
    shard-00000.npy   [n, F, 2C, h, w] float16: n images, F = 2 with mirrored ones, else 1
    shard-00000.json  count, SHA-256 and sums of that shard; written after it, so it says that it is complete
    labels.npy        [N] int64
    index.json        everything a reader needs; written last
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dit.data.images import Images, Size, sides, size_of
from dit.errors import UserError
from dit.files import LOCK, sha256, write_json
from dit.latents.moments import MomentSums

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
    count: int  # images
    shard_size: int
    fingerprint: str  # of the names and order of the images
    captions: bool = False  # whether classes are captions; not said by folders of earlier versions

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.shard_size)

    def indices(self, shard: int) -> np.ndarray:
        """The images of a shard."""
        return np.arange(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def images_in(self, shards: Sequence[int]) -> int:
        """How many images these shards hold."""
        return sum(len(self.indices(shard)) for shard in shards)


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
        raise UserError(f"--out {root} is a file", "a folder, new or made by dit encode", "choose another --out")
    if holds_latents(root):
        _check_same(root, encoding)
        return
    for path in root.iterdir() if root.exists() else ():
        if path.name != LOCK and not path.name.startswith(f".{ENCODING}."):  # what a killed process leaves
            raise UserError(f"--out {root} holds {path.name} and no {ENCODING}",
                            "a folder that is new, empty or made by dit encode", "choose another --out")


def _check_same(root: Path, encoding: Encoding) -> None:
    found, values = read_json(root / ENCODING, "choose another --out"), dataclasses.asdict(encoding)
    found.setdefault("captions", False)
    different = [name for name in values if found.get(name) != values[name]]
    if encoding.checksum is not None and "vae" in different:
        different.remove("vae")  # the checksum decides, wherever the file lies
    if different and {"count", "fingerprint"}.issuperset(different) and not (root / INDEX).exists():
        raise UserError(f"the image files changed since the unfinished latents in {root} were begun "
                        f"({found.get('count')} then, {encoding.count} now)", "files of the same names, to continue",
                        "put back what was deleted, renamed or added, or choose another --out to begin again")
    for name in different:
        raise UserError(f"{root} holds latents with {name} {found.get(name)}, not {values[name]}",
                        "an empty folder, or one begun with the same data and settings", "choose another --out")


def is_complete(root: Path, shard: int) -> bool:
    """Whether the shard is there and has the bytes that were written."""
    path = _shard_path(root, shard)
    try:
        note = read_json(_note_path(root, shard))
    except (OSError, UserError):
        return False
    return path.is_file() and note.keys() >= NOTE_KEYS and note["sha256"] == sha256(path)


def write_shard(root: Path, shard: int, batches: Iterator[Tensor], shape: tuple[int, ...]) -> None:
    """Write one shard from batches of moments [B, F, 2C, h, w], `shape` in all; it appears when it is whole."""
    path = _shard_path(root, shard)
    beside = path.with_suffix(".npy.tmp")
    array = np.lib.format.open_memmap(beside, "w+", np.float16, shape)
    sums, start = [], 0
    for batch in batches:
        stored = batch.numpy().astype(np.float16)
        array[start : start + len(stored)] = stored
        sums.append(MomentSums.of(stored))
        start += len(stored)
    assert start == shape[0], f"{start} images for a shard of {shape[0]}"
    array.flush()
    del array
    _note_path(root, shard).unlink(missing_ok=True)  # it spoke of the shard that is replaced now
    beside.replace(path)
    total = sum(sums[1:], sums[0])
    note = {"file": path.name, "count": shape[0], "sha256": sha256(path), "values": total.count}
    write_json(_note_path(root, shard), note | {"first": total.first.tolist(), "second": total.second.tolist()})


def write_index(root: Path, encoding: Encoding, images: Images, shape: tuple[int, int, int]) -> None:
    """Finish the folder, once all shards are complete."""
    notes = [read_json(_note_path(root, shard)) for shard in range(encoding.shards)]
    sums = [MomentSums(n["values"], np.array(n["first"]), np.array(n["second"])) for n in notes]
    mean, std = sum(sums[1:], sums[0]).statistics()
    np.save(root / LABELS, images.labels)
    shards = [{key: note[key] for key in ("file", "count", "sha256")} for note in notes]
    index = {"shape": shape, "classes": images.classes, "mean": mean.tolist(), "std": std.tolist(), "shards": shards}
    write_json(root / INDEX, dataclasses.asdict(encoding) | index)


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
