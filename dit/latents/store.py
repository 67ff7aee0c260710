"""Sources of latents for training: shards on disk, everything in memory, or encoded on the fly.

A source gives the *moments* of the posterior (mean and deviation), so that training draws a fresh latent each
time, and holds the mirrored image's moments beside the image's, for a latent can not be mirrored itself.

A folder of shards holds
    encoding.json     what is being encoded and how; written first, so that a rerun can tell whether it fits
    shard-00000.npy   [n, F, 2C, h, w] float16: n images, F = 2 with mirrored ones, else 1
    shard-00000.json  count, SHA-256 and sums of that shard; written after it, so it says that it is complete
    labels.npy        [N] int64
    index.json        everything a reader needs; written last
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dit.data.images import Images, Size, sides, size_of
from dit.errors import UserError
from dit.files import LOCK, sha256, write_json
from dit.latents.autoencoder import Autoencoder

ENCODING, INDEX, LABELS = "encoding.json", "index.json", "labels.npy"
NOTE_KEYS = {"file", "count", "sha256", "values", "first", "second"}
AGAIN = "run dit encode again: it makes damaged files anew"
SAMPLE_FOR_STATISTICS = 2048  # images that OnlineLatents.statistics encodes


class Latents(Protocol):
    """A source of latents for training."""

    labels: np.ndarray  # [N] int64; all 0 where there are no classes
    classes: list[str]
    flips: bool  # whether mirrored images can be read

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (C, h, w)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor: ...  # int64 [B], bool [B] -> [B, 2C, h, w]

    def statistics(self) -> tuple[Tensor, Tensor]: ...  # mean [C] and deviation [C] of drawn z


@dataclass(frozen=True)
class MomentSums:
    """Sums over moments from which the statistics of drawn z follow; sums of parts add up to those of the whole."""

    count: int
    first: np.ndarray  # [C] float64, sum of means
    second: np.ndarray  # [C] float64, sum of means squared + variances: E[z^2]

    @classmethod
    def of(cls, moments: np.ndarray | Tensor) -> "MomentSums":
        """Sums of moments [..., 2C, h, w], in float64."""
        values = np.asarray(moments)
        mean, std = np.split(values.reshape(-1, *values.shape[-3:]).astype(np.float64), 2, axis=1)
        second = np.square(mean).sum(axis=(0, 2, 3)) + np.square(std).sum(axis=(0, 2, 3))
        return cls(mean[:, 0].size, mean.sum(axis=(0, 2, 3)), second)

    def __add__(self, other: "MomentSums") -> "MomentSums":
        return MomentSums(self.count + other.count, self.first + other.first, self.second + other.second)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and deviation [C] of drawn z, float32."""
        mean = self.first / self.count
        variance = np.maximum(self.second / self.count - np.square(mean), 0)
        return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance)).float()


def decode_batches(images: Images, indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
    """uint8 batches [B, 3, H, W] of the images at `indices`; threads decode the next while the caller has one."""
    batches = np.split(indices, range(batch_size, len(indices), batch_size))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        ahead = [pool.submit(images.__getitem__, int(i)) for i in batches[0]]
        for following in [*batches[1:], np.empty(0, np.int64)]:
            current, ahead = ahead, [pool.submit(images.__getitem__, int(i)) for i in following]
            yield torch.stack([image.result() for image in current])


def encode_views(images: Tensor, autoencoder: Autoencoder, flips: bool) -> Tensor:
    """uint8 [B, 3, H, W] -> moments [B, F, 2C, h, w] on the CPU: the image's and, with flips, the mirrored one's."""
    views = [images, images.flip(-1)] if flips else [images]
    return torch.stack([autoencoder.encode(view).cpu() for view in views], dim=1)


class MemoryLatents:
    """Moments in memory, for small data.

    Args:
        moments: [N, F, 2C, h, w].
        labels: [N] int64.
    """

    def __init__(self, moments: Tensor, labels: np.ndarray, classes: list[str]):
        self._moments, self.labels, self.classes = moments, labels, classes
        self.flips = moments.shape[1] == 2

    @classmethod
    def encode(cls, images: Images, autoencoder: Autoencoder, flips: bool, batch_size: int = 64) -> "MemoryLatents":
        """Encode everything now."""
        batches = decode_batches(images, np.arange(len(images)), batch_size)
        moments = torch.cat([encode_views(batch, autoencoder, flips) for batch in batches])
        return cls(moments, images.labels, images.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""
        return _latent_shape(self._moments.shape)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        """Moments float32 [B, 2C, h, w] of samples [B], those mirrored where `flip` [B] says so."""
        return self._moments[torch.as_tensor(indices), torch.as_tensor(flip).long()].float()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and deviation [C] of drawn z."""
        return MomentSums.of(self._moments).statistics()


class OnlineLatents:
    """Images encoded when asked for: no preparation, but the encoder runs in every step."""

    def __init__(self, images: Images, autoencoder: Autoencoder, flips: bool):
        self.labels, self.classes, self.flips = images.labels, images.classes, flips
        self.shape = autoencoder.latent_shape(images.image_size)
        self._images, self._autoencoder = images, autoencoder
        self._pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        """Moments float32 [B, 2C, h, w] of samples [B], those mirrored where `flip` [B] says so."""
        images = torch.stack(list(self._pool.map(self._images.__getitem__, np.asarray(indices).tolist())))
        mirrored = torch.as_tensor(flip)[:, None, None, None]
        return self._autoencoder.encode(torch.where(mirrored, images.flip(-1), images)).cpu()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and deviation [C] of drawn z, from at most 2,048 evenly spaced images."""
        count = min(len(self.labels), SAMPLE_FOR_STATISTICS)
        indices = np.linspace(0, len(self.labels) - 1, count).astype(np.int64)
        batches = decode_batches(self._images, indices, batch_size=32)
        sums = [MomentSums.of(encode_views(batch, self._autoencoder, self.flips)) for batch in batches]
        return sum(sums[1:], sums[0]).statistics()


def _latent_shape(moments_shape: tuple[int, ...] | torch.Size) -> tuple[int, int, int]:
    channels, height, width = moments_shape[-3:]
    return channels // 2, height, width


# -- shards on disk ----------------------------------------------------------------------------------------------


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
    found, values = _read_json(root / ENCODING, "choose another --out"), dataclasses.asdict(encoding)
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
        note = _read_json(_note_path(root, shard))
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
    notes = [_read_json(_note_path(root, shard)) for shard in range(encoding.shards)]
    sums = [MomentSums(n["values"], np.array(n["first"]), np.array(n["second"])) for n in notes]
    mean, std = sum(sums[1:], sums[0]).statistics()
    np.save(root / LABELS, images.labels)
    shards = [{key: note[key] for key in ("file", "count", "sha256")} for note in notes]
    index = {"shape": shape, "classes": images.classes, "mean": mean.tolist(), "std": std.tolist(), "shards": shards}
    write_json(root / INDEX, dataclasses.asdict(encoding) | index)


def holds_latents(root: Path) -> bool:
    """Whether `dit encode` wrote, or began to write, this folder."""
    return (root / ENCODING).is_file()


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
        index = {"captions": False, **_read_json(root / INDEX)}
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


def _shard_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:05d}.npy"


def _note_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:05d}.json"


def _read_json(path: Path, do: str = AGAIN) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})", "a JSON file", do) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (a {type(values).__name__})", "a JSON object", do)
    return values
