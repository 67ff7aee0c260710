"""Where training reads latents: what a source of them is, and the one that reads shards from disk."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dit.data.images import sides, size_of
from dit.errors import UserError
from dit.latents.shards import AGAIN, INDEX, LABELS, Encoding, holds_latents, read_json


class Latents(Protocol):
    """A source of latents for training."""

    labels: np.ndarray  # [N] int64; all 0 where there are no classes
    classes: list[str]
    flips: bool  # whether mirrored images can be read

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (C, h, w)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor: ...  # int64 [B], bool [B] -> [B, 2C, h, w]

    def statistics(self) -> tuple[Tensor, Tensor]: ...  # mean [C] and deviation [C] of drawn z


class LatentStore:
    """Latents written by `dit encode`, read straight from disk.

    Opening compares shapes, not checksums, which would take a reading of everything: a bit that flipped in a shard
    goes unnoticed here. `dit encode` run again compares each shard's SHA-256 and makes those that differ anew.

    Attributes:
        vae, checksum, image_size: what the latents were made with.
        captions: whether classes are captions.

    Raises:
        UserError: not a folder of latents, an unfinished one, or a damaged file, which is named.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        index = _read_index(self.root)
        self.shape: tuple[int, int, int] = tuple(index["shape"])
        self.classes: list[str] = index["classes"]
        self.flips: bool = index["flips"]
        self.vae: str = index["vae"]
        self.checksum: str | None = index["checksum"]
        self.captions: bool = index["captions"]
        self.image_size = size_of(*sides(index["image_size"]))
        self._statistics = torch.tensor(index["mean"]), torch.tensor(index["std"])
        channels, height, width = self.shape
        view = (2 if self.flips else 1, 2 * channels, height, width)
        self._shards = [_open_array(self.root / s["file"], (s["count"], *view), "<f2") for s in index["shards"]]
        self._shard_size: int = index["shard_size"]
        self.labels = np.array(_open_array(self.root / LABELS, (index["count"],), "<i8"))
        last = max(0, len(self.classes) - 1)
        if self.labels.min() < 0 or self.labels.max() > last:
            raise UserError(f"{self.root / LABELS} holds labels {self.labels.min()} to {self.labels.max()}",
                            f"0 to {last}", AGAIN)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        """Moments float32 [B, 2C, h, w] of samples [B], those mirrored where `flip` [B] says so."""
        shards, rows = np.divmod(np.asarray(indices), self._shard_size)
        views = np.asarray(flip).astype(np.int64)
        channels, height, width = self.shape
        moments = np.empty((len(rows), 2 * channels, height, width), np.float16)
        for shard in np.unique(shards):
            here = shards == shard
            moments[here] = self._shards[shard][rows[here], views[here]]
        return torch.from_numpy(moments).float()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and deviation [C] of drawn z, measured over all of it when it was encoded."""
        return self._statistics


def _read_index(root: Path) -> dict[str, Any]:
    if (root / INDEX).is_file():
        index = {"captions": False, **read_json(root / INDEX)}
        names = {field.name for field in dataclasses.fields(Encoding)} | {"shape", "classes", "mean", "std", "shards"}
        if lacks := sorted(names - index.keys()):
            raise UserError(f"{root / INDEX} is damaged (no {lacks[0]})", f"{len(names)} entries", AGAIN)
        return index
    if holds_latents(root):
        raise UserError(f"the latents in {root} are unfinished", f"{INDEX}, which `dit encode` writes at the end",
                        "run dit encode again to finish")
    raise UserError(f"{root} is not a folder of latents", "a folder written by `dit encode`", "check the path")


def _open_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A memory map of an .npy file that must have this shape."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error})", f"an array {list(shape)}", AGAIN) from error
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}", f"{dtype} {list(shape)}", AGAIN)
    return array
