"""Sources of latents for training: their interface, and the one that reads shards from disk."""

import math
import os
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.config.validation import require_none_of
from dit.errors import UserError
from dit.latents.shards import (
    ENCODE_AGAIN,
    INDEX,
    LABELS,
    Encoding,
    ListedShard,
    holds_latents,
)
from dit.utils import system
from dit.utils.files import sha256
from dit.utils.image_size import sides, size_of
from dit.utils.typed_json import read_json

MAX_OPEN = 256  # shards at a time, at most
LABELS_AT_ONCE = 1_000_000
HEADER = 128  # bytes of a shard before its numbers, as the .npy format has it
DAMAGED = f"{ENCODE_AGAIN}; or pass --skip-damaged to train.py, to skip it"


@dataclass(frozen=True, kw_only=True)
class Index(Encoding):
    """The content of index.json.

    Args:
        shape: (C, h, w) of a latent.
        mean, std: statistics of sampled z, per channel.
    """

    shape: tuple[int, int, int]
    classes: list[str]
    mean: list[float]
    std: list[float]
    labels_sha256: str | None = None  # not in stores of earlier versions
    shards: list[ListedShard]

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = self.shape[0]
        lengths = [len(self.mean), len(self.std)]
        conflicts = [
            (min(self.shape) < 1, f"shape {list(self.shape)}", "sizes above 0"),
            (min(sides(self.image_size)) < 1, f"image_size {self.image_size}", "sizes above 0"),
            (
                lengths != [channels] * 2,
                f"mean and std of {lengths} values",
                f"one for each of {channels} channels",
            ),
            (min(self.std, default=0) < 0, f"std {self.std}", "0 or more"),
            (
                self.images != self.count,
                f"count {self.count} for shards of {self.images} images",
                "their sum",
            ),
        ]
        for shard in self.shards:
            file, count = shard["file"], shard["count"]
            inside = Path(file).name == file
            conflicts.append((not inside, f"shard {file!r}", "a file beside the index"))
            conflicts.append((count < 0, f"shard {file} of {count} images", "0 or more"))
        require_none_of((*conflict, ENCODE_AGAIN) for conflict in conflicts)

    @property
    def images(self) -> int:
        """Return the number of images in all shards."""
        return sum(shard["count"] for shard in self.shards)


class Latents(Protocol):
    """A source of latents for training.

    `read` returns moments [B, 2C, h, w] of samples [B], mirrored where `flip` [B]; `statistics`
    mean [C] and deviation [C] of sampled z.
    """

    labels: np.ndarray  # [N] int64; all 0 where there are no classes
    classes: list[str]
    flips: bool  # whether mirrored images can be read

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (C, h, w)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor: ...

    def statistics(self) -> tuple[Tensor, Tensor]: ...


class LatentStore:
    """Latents written by `dit encode`, read from disk; memory for one batch, whatever their number.

    Opening compares sizes, not checksums, for which all files would have to be read: a flipped bit
    is not detected. `find_damaged_shards` and a rerun of `dit encode` compare SHA-256.

    Args:
        skipped: names of shards to skip; samples are then counted over those that remain.

    Attributes:
        vae, checksum, image_size: the autoencoder and the size of the images.
        captions: whether classes are captions.
    """

    def __init__(self, root: str | Path, skipped: Collection[str] = ()):
        self.root = Path(root)
        index = read_index(self.root)
        self.shape = index.shape
        self.classes = index.classes
        self.flips = index.flips
        self.vae = index.vae
        self.checksum = index.checksum
        self.captions = index.captions
        self.image_size = size_of(*sides(index.image_size))
        self._statistics = torch.tensor(index.mean), torch.tensor(index.std)

        shards = [shard for shard in index.shards if shard["file"] not in skipped]
        if not shards:
            raise UserError(f"all shards of {root} are damaged", "one that is not", ENCODE_AGAIN)
        channels, height, width = self.shape
        self._view = (2 if self.flips else 1, 2 * channels, height, width)  # of an image's moments
        # check all sizes now: a missing shard must not stop training in the middle
        self._files = [
            _check_shard(self.root / shard["file"], (shard["count"], *self._view))
            for shard in shards
        ]
        self._ends = np.cumsum([shard["count"] for shard in shards])
        self._max_open = most_open_files()
        self._open = lru_cache(self._max_open)(ShardFile)
        self.labels = _open_array(self.root / LABELS, (index.images,), "<i8")
        if skipped:
            self.labels = _without_shards(self.labels, index.shards, skipped)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        indices = np.asarray(indices)
        assert self.flips or not np.any(flip), "no mirrored images to read"

        # byte offsets of the samples: shards are C-ordered arrays
        shards = np.searchsorted(self._ends, indices, side="right")
        rows = indices - np.where(shards > 0, self._ends[shards - 1], 0)
        moments = np.empty((len(indices), *self._view[1:]), np.float16)
        size = moments[:1].nbytes
        starts = (rows * self._view[0] + np.asarray(flip)) * size
        buffers = moments.reshape(len(moments), -1).view(np.uint8)

        for first in range(0, len(rows), self._max_open):
            part = range(first, min(first + self._max_open, len(rows)))
            files = [self._open(self._files[shards[i]]) for i in part]
            # announce all reads before the first, so that the disk can work ahead
            for i, file in zip(part, files, strict=True):
                file.prefetch(int(starts[i]), size)
            for i, file in zip(part, files, strict=True):
                file.read(int(starts[i]), buffers[i])
        return torch.from_numpy(moments)

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self._statistics

    def check_labels(self) -> None:
        """Refuse labels that are no classes; all are read."""
        last = max(0, len(self.classes) - 1)
        # in parts: there may be billions
        for start in range(0, len(self.labels), LABELS_AT_ONCE):
            part = self.labels[start : start + LABELS_AT_ONCE]
            if not 0 <= part.min() <= part.max() <= last:
                raise UserError(
                    f"{self.root / LABELS} holds labels {part.min()} to {part.max()}",
                    f"0 to {last}",
                    ENCODE_AGAIN,
                )


def most_open_files() -> int:
    """Return how many shards to keep open: a quarter of the files that the system allows."""
    allowed = system.most_open_files()
    return MAX_OPEN if allowed is None else max(1, min(MAX_OPEN, allowed // 4))


class ShardFile:
    """An open shard, closed when it is garbage-collected."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | system.OPEN_FLAGS)
        except OSError as error:
            given = f"{path} cannot be opened ({error.strerror})"
            raise UserError(given, "a shard as when training started", DAMAGED) from error
        weakref.finalize(self, os.close, self._descriptor)

    def prefetch(self, start: int, size: int) -> None:
        """Let the system read so many bytes ahead."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor, HEADER + start, size, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, buffer: np.ndarray) -> None:
        """Fill the bytes [n] of a buffer."""
        end = HEADER + start + len(buffer)
        try:
            count = system.read_at(self._descriptor, buffer.data, HEADER + start)
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be read before byte {end:,} ({error.strerror})",
                "an intact disk",
                DAMAGED,
            ) from error
        if count != len(buffer):
            raise UserError(
                f"{self._path} breaks off before byte {end:,}", "all of its latents", DAMAGED
            )


def _without_shards(
    labels: np.ndarray, shards: Sequence[ListedShard], skipped: Collection[str]
) -> np.ndarray:
    """Return the labels of the images in the remaining shards."""
    ends = np.cumsum([shard["count"] for shard in shards])
    parts = np.split(labels, ends[:-1])
    kept = zip(parts, shards, strict=True)
    return np.concatenate([part for part, shard in kept if shard["file"] not in skipped])


# -- damage ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """A damaged or missing file of a store, and how many images depend on it."""

    file: str
    images: int
    reason: str


def find_damaged_shards(root: str | Path) -> list[Damage]:
    """Return the files of a store whose SHA-256 differs from that in its index; all are read."""
    root = Path(root)
    index = read_index(root)
    files = [(shard["file"], shard["count"], shard["sha256"]) for shard in index.shards]
    if index.labels_sha256 is not None:
        files.append((LABELS, index.images, index.labels_sha256))

    damaged = []
    size = sum(_size(root / name) for name, _, _ in files)
    style: dict[str, Any] = dict(unit="B", unit_scale=True, unit_divisor=1024)
    # many shards are read for minutes; a few need no bar
    with tqdm(desc="checksums", total=size, delay=1, leave=False, **style) as bar:
        for name, count, expected in files:
            if reason := _find_damage(root / name, expected):
                damaged.append(Damage(name, count, reason))
            bar.update(_size(root / name))
    return damaged


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _find_damage(path: Path, expected: str) -> str:
    """Return why a file does not have the expected SHA-256, or "" if it has."""
    if not path.is_file():
        return "missing"
    try:
        actual = sha256(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if actual == expected else f"SHA-256 {actual[:8]}…, not {expected[:8]}…"


# -- opening ---------------------------------------------------------------------------------------


def read_index(root: Path) -> Index:
    """Return the index of a finished store."""
    if (root / INDEX).is_file():
        return read_json(root / INDEX, Index, "the index that dit encode wrote", ENCODE_AGAIN)
    if holds_latents(root):
        raise UserError(
            f"the latents in {root} are unfinished",
            f"{INDEX}, which `dit encode` writes at the end",
            "run dit encode again to finish",
        )
    raise UserError(
        f"{root} is not a folder of latents", "a folder written by `dit encode`", "check the path"
    )


def _check_shard(path: Path, shape: tuple[int, ...]) -> Path:
    """Return the path of a shard that holds this shape, by header and size; refuse another."""
    _open_array(path, shape, "<f2", DAMAGED)
    expected = HEADER + 2 * math.prod(shape)
    if _size(path) != expected:
        raise UserError(f"{path} has {_size(path):,} bytes", f"{expected:,}", DAMAGED)
    return path


def _open_array(
    path: Path, shape: tuple[int, ...], dtype: str, do: str = ENCODE_AGAIN
) -> np.ndarray:
    """Return a memory map of an .npy file that must have this shape."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        given = f"{path} is missing or damaged ({error})"
        raise UserError(given, f"an array {list(shape)}", do) from error
    # bytes are read by their place, which is another in Fortran's order
    in_order = array.flags.c_contiguous
    if array.shape != shape or array.dtype != np.dtype(dtype) or not in_order:
        order = "" if in_order else " in Fortran's order"
        given = f"{path} holds {array.dtype} {list(array.shape)}{order}"
        raise UserError(given, f"{dtype} {list(shape)}", do)
    return array
