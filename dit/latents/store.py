"""Sources of latents for training: their interface, and the one that reads shards from disk."""

import dataclasses
import math
import os
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.errors import UserError
from dit.latents.shards import ENCODE_AGAIN, INDEX, LABELS, Encoding, holds_latents, read_json
from dit.utils.files import sha256
from dit.utils.image_size import sides, size_of

MAX_OPEN = 256  # shards at a time: systems allow about a thousand files
HEADER = 128  # bytes of a shard before its numbers, as the .npy format has it
DAMAGED = f"{ENCODE_AGAIN}; or pass --skip-damaged to train.py, to skip it"


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
        self.shape: tuple[int, int, int] = tuple(index["shape"])
        self.classes: list[str] = index["classes"]
        self.flips: bool = index["flips"]
        self.vae: str = index["vae"]
        self.checksum: str | None = index["checksum"]
        self.captions: bool = index["captions"]
        self.image_size = size_of(*sides(index["image_size"]))
        self._statistics = torch.tensor(index["mean"]), torch.tensor(index["std"])

        shards = [shard for shard in index["shards"] if shard["file"] not in skipped]
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
        self._open = lru_cache(MAX_OPEN)(ShardFile)
        self.labels = _open_array(self.root / LABELS, (index["count"],), "<i8")
        if skipped:
            self.labels = _without_shards(self.labels, index["shards"], skipped)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        indices = np.asarray(indices)
        assert self.flips or not np.any(flip), "no mirrored images to read"
        self._check_labels(indices)

        # byte offsets of the samples: shards are C-ordered arrays
        shards = np.searchsorted(self._ends, indices, side="right")
        rows = indices - np.where(shards > 0, self._ends[shards - 1], 0)
        moments = np.empty((len(indices), *self._view[1:]), np.float16)
        size = moments[:1].nbytes
        starts = (rows * self._view[0] + np.asarray(flip)) * size
        buffers = moments.reshape(len(moments), -1).view(np.uint8)

        for first in range(0, len(rows), MAX_OPEN):
            part = range(first, min(first + MAX_OPEN, len(rows)))
            files = [self._open(self._files[shards[i]]) for i in part]
            # announce all reads before the first, so that the disk can work ahead
            for i, file in zip(part, files, strict=True):
                file.prefetch(int(starts[i]), size)
            for i, file in zip(part, files, strict=True):
                file.read(int(starts[i]), buffers[i])
        return torch.from_numpy(moments)

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self._statistics

    def _check_labels(self, indices: np.ndarray) -> None:
        # per batch: the labels of all images may be too many to read at the start
        labels, last = self.labels[indices], max(0, len(self.classes) - 1)
        if len(labels) and not 0 <= labels.min() <= labels.max() <= last:
            raise UserError(
                f"{self.root / LABELS} holds labels {labels.min()} to {labels.max()}",
                f"0 to {last}",
                ENCODE_AGAIN,
            )


class ShardFile:
    """An open shard, closed when it is garbage-collected."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def prefetch(self, start: int, size: int) -> None:
        """Let the system read so many bytes ahead."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor, HEADER + start, size, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, buffer: np.ndarray) -> None:
        """Fill the bytes [n] of a buffer."""
        end = HEADER + start + len(buffer)
        try:
            count = os.preadv(self._descriptor, [buffer.data], HEADER + start)
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
    labels: np.ndarray, shards: list[dict[str, Any]], skipped: Collection[str]
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
    files = [(shard["file"], shard["count"], shard["sha256"]) for shard in index["shards"]]
    if "labels_sha256" in index:  # not in stores of earlier versions
        files.append((LABELS, index["count"], index["labels_sha256"]))

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


def read_index(root: Path) -> dict[str, Any]:
    """Return the index of a finished store."""
    if (root / INDEX).is_file():
        index = {"captions": False, **read_json(root / INDEX)}
        fields = {field.name for field in dataclasses.fields(Encoding)}
        required = fields | {"shape", "classes", "mean", "std", "shards"}
        missing = sorted(required - index.keys())
        if missing:
            raise UserError(
                f"{root / INDEX} is damaged (no {missing[0]})",
                f"{len(required)} entries",
                ENCODE_AGAIN,
            )
        return index
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
