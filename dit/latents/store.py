"""Where training reads latents: what a source of them is, and the one that reads shards from disk."""

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
from dit.latents.shards import AGAIN, INDEX, LABELS, Encoding, holds_latents, read_json
from dit.utils.files import sha256
from dit.utils.image_size import sides, size_of

MOST_OPEN = 256  # shards at a time: systems allow about a thousand files
HEADER = 128  # bytes of a shard before its numbers, as the .npy format has it
DAMAGED = f"{AGAIN}; or pass --skip-damaged to train.py, to leave it out"


class Latents(Protocol):
    """A source of latents for training."""

    labels: np.ndarray  # [N] int64; all 0 where there are no classes
    classes: list[str]
    flips: bool  # whether mirrored images can be read

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (C, h, w)

    def read(
        self, indices: np.ndarray, flip: np.ndarray
    ) -> Tensor: ...  # int64 [B], bool [B] -> [B, 2C, h, w]

    def statistics(self) -> tuple[Tensor, Tensor]: ...  # mean [C] and deviation [C] of drawn z


class LatentStore:
    """Latents written by `dit encode`, read straight from disk, with memory for one batch at any number of them.

    Opening compares sizes, not checksums, which would take a reading of everything: a bit that flipped in a shard
    goes unnoticed here. `damaged_shards` compares SHA-256, and so does `dit encode` run again, which makes damaged
    shards anew.

    Args:
        without: names of shards to leave out; samples are then counted over those that remain.

    Attributes:
        vae, checksum, image_size: what the latents were made with.
        captions: whether classes are captions.

    Raises:
        UserError: not a folder of latents, an unfinished one, or a damaged file, which is named; when latents are read:
            a shard breaks off, or a label is not one of the classes.
    """

    def __init__(self, root: str | Path, without: Collection[str] = ()):
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
        kept = [shard for shard in index["shards"] if shard["file"] not in without]
        if not kept:
            raise UserError(f"all shards of {root} are damaged", "one that is not", AGAIN)
        self._view = _view(index)
        self._files = [
            _check_size(self.root / shard["file"], (shard["count"], *self._view)) for shard in kept
        ]
        self._ends = np.cumsum([shard["count"] for shard in kept])
        self._open = lru_cache(MOST_OPEN)(ShardFile)
        self.labels = _open_array(self.root / LABELS, (index["count"],), "<i8")
        if without:
            self.labels = np.concatenate(
                [self.labels[part] for part in _parts(index["shards"], without)]
            )

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        """Moments float16 [B, 2C, h, w] of samples [B], those mirrored where `flip` [B] says so."""
        indices = np.asarray(indices)
        assert self.flips or not np.any(flip), "no mirrored images to read"
        self._check_labels(indices)
        shards = np.searchsorted(self._ends, indices, side="right")
        rows = indices - np.where(shards > 0, self._ends[shards - 1], 0)
        moments = np.empty((len(indices), *self._view[1:]), np.float16)
        size = moments[:1].nbytes
        starts = (rows * self._view[0] + np.asarray(flip)) * size
        places = moments.reshape(len(moments), -1).view(np.uint8)
        for part in np.split(np.arange(len(rows)), range(MOST_OPEN, len(rows), MOST_OPEN)):
            wanted = [(self._open(self._files[shards[i]]), int(starts[i]), places[i]) for i in part]
            for (
                file,
                start,
                _,
            ) in wanted:  # all of them at once, so that the disk need not wait for us
                file.announce(start, size)
            for file, start, place in wanted:
                file.read(start, place)
        return torch.from_numpy(moments)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and deviation [C] of drawn z, measured over all of it when it was encoded."""
        return self._statistics

    def _check_labels(self, indices: np.ndarray) -> None:
        labels, last = self.labels[indices], max(0, len(self.classes) - 1)
        if len(labels) and not 0 <= labels.min() <= labels.max() <= last:
            raise UserError(
                f"{self.root / LABELS} holds labels {labels.min()} to {labels.max()}",
                f"0 to {last}",
                AGAIN,
            )


class ShardFile:
    """A shard that is open for as long as somebody holds it."""

    def __init__(self, path: Path):
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def announce(self, start: int, size: int) -> None:
        """Let the system fetch so many bytes, before they are asked for."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor, HEADER + start, size, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, place: np.ndarray) -> None:
        """Fill bytes [n] from there.

        Raises:
            UserError: the file ends before, or the disk fails.
        """
        end = HEADER + start + len(place)
        try:
            count = os.preadv(self._descriptor, [place.data], HEADER + start)
        except OSError as error:
            raise UserError(
                f"{self._path} can not be read before byte {end:,} ({error.strerror})",
                "an intact disk",
                DAMAGED,
            ) from error
        if count != len(place):
            raise UserError(
                f"{self._path} breaks off before byte {end:,}", "all of its latents", DAMAGED
            )


@dataclass(frozen=True)
class Damage:
    """A file of a store that is not what was written, and how many images are lost with it."""

    file: str
    images: int
    reason: str


def damaged_shards(root: str | Path, quiet: bool = False) -> list[Damage]:
    """The files of a store whose SHA-256 is not that of its index: all of it is read.

    Raises:
        UserError: not a folder of latents, or an unfinished one.
    """
    root = Path(root)
    index = read_index(root)
    files = [(shard["file"], shard["count"], shard["sha256"]) for shard in index["shards"]]
    files += [(LABELS, index["count"], index["labels_sha256"])] if "labels_sha256" in index else []
    size = sum(_size(root / name) for name, _, _ in files)
    with tqdm(
        total=size, unit="B", unit_scale=True, unit_divisor=1024, desc="verify", disable=quiet
    ) as bar:
        found = []
        for name, count, expected in files:
            if reason := _difference(root / name, expected):
                found.append(Damage(name, count, reason))
            bar.update(_size(root / name))
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _difference(path: Path, expected: str) -> str:
    """What is wrong with a file; nothing if it is as it was written."""
    if not path.is_file():
        return "missing"
    try:
        found = sha256(path)
    except OSError as error:
        return f"can not be read: {error.strerror}"
    return "" if found == expected else f"SHA-256 {found[:8]}…, not {expected[:8]}…"


def _view(index: dict[str, Any]) -> tuple[int, int, int, int]:
    """(F, 2C, h, w) of an image's moments."""
    channels, height, width = index["shape"]
    return 2 if index["flips"] else 1, 2 * channels, height, width


def _parts(shards: list[dict[str, Any]], without: Collection[str]) -> list[slice]:
    """Where the samples of the remaining shards lie among all samples."""
    ends = np.cumsum([shard["count"] for shard in shards]).tolist()
    return [
        slice(end - shard["count"], end)
        for shard, end in zip(shards, ends, strict=True)
        if shard["file"] not in without
    ]


def read_index(root: Path) -> dict[str, Any]:
    """What index.json says of a finished store.

    Raises:
        UserError: not a folder of latents, an unfinished one, or a damaged index.
    """
    if (root / INDEX).is_file():
        index = {"captions": False, **read_json(root / INDEX)}
        names = {field.name for field in dataclasses.fields(Encoding)} | {
            "shape",
            "classes",
            "mean",
            "std",
            "shards",
        }
        if lacks := sorted(names - index.keys()):
            raise UserError(
                f"{root / INDEX} is damaged (no {lacks[0]})", f"{len(names)} entries", AGAIN
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


def _check_size(path: Path, shape: tuple[int, ...]) -> Path:
    """The path of a shard of this shape, if it has the size for it; else it is opened, to tell what it is."""
    expected = HEADER + 2 * math.prod(shape)
    if _size(path) != expected:
        _open_array(path, shape, "<f2", DAMAGED)
        raise UserError(f"{path} has {_size(path):,} bytes", f"{expected:,}", DAMAGED)
    return path


def _open_array(path: Path, shape: tuple[int, ...], dtype: str, do: str = AGAIN) -> np.ndarray:
    """A memory map of an .npy file that must have this shape."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error})", f"an array {list(shape)}", do
        ) from error
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise UserError(
            f"{path} holds {array.dtype} {list(array.shape)}", f"{dtype} {list(shape)}", do
        )
    return array
