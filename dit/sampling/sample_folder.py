"""Folders of samples: filled by all ranks, and continued after an interruption."""

import csv
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit.config import SampleConfig, SamplerConfig
from dit.config.flag_names import as_typed
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.sampling.fit import require_samples_fit
from dit.sampling.generate import generate
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.sampling.protocol import protocol
from dit.utils.files import (
    reraise_as_user_error,
    write_atomically,
    write_json,
    write_text,
)
from dit.utils.outputs import create_folder, require_own_folder
from dit.utils.pictures import write_png
from dit.utils.typed_json import read_json

RECORD, LABELS, ARCHIVE, PARTS = "samples.json", "labels.csv", "samples.npz", "parts"
TEMPORARY = re.compile(r"\.(\d{6,}\.png|samples\.json|samples\.npz|labels\.csv|part-\d+\.npz)\.\d+")
PNG_END = b"IEND\xaeB`\x82"
PNG_THREADS = 4
BAR = "{l_bar}{bar}| {n:,}/{total:,} img [{elapsed}<{remaining}, {rate_fmt}]"


class SampleRecord(TypedDict, total=False):
    """What is read of samples.json; it may hold more."""

    num_samples: int
    data: str
    network: dict[str, Any]
    classes: list[int]
    prompts: list[str]
    versions: dict[str, str | None]


def sample_folder(
    run: LoadedRun,
    config: SamplerConfig,
    classes: Sequence[int],
    num_samples: int,
    out: Path,
    format: str,
    ranks: Ranks,
) -> Path:
    """Fill a folder with images; image i has class classes[i % len(classes)].

    An interrupted folder, or one with fewer images, is completed. Rank r makes the images
    i % world == r. If one rank fails, all ranks raise its error.

    `png`: 000000.png, …, and labels.csv when all are done. `npz`: samples.npz in ADM's layout
    (arr_0 uint8 [N, H, W, 3], arr_1 int64 [N]), collected from parts. An unconditional run has no
    labels.
    """
    names: dict[int, str] = {}
    if not run.card.unconditional:
        names = {c: run.card.class_name(c) for c in classes}
    labels = [classes[i % len(classes)] for i in range(num_samples)]
    folder = (PngFolder if format == "png" else NpzFolder)(out, labels, names)
    done = ranks.on_main(lambda: _find_done(folder))
    # the missing images by rank; any number of ranks can continue a folder
    shares = [
        [i for i in range(rank, num_samples, ranks.world) if i not in done]
        for rank in range(ranks.world)
    ]

    # compiled code pads every batch to this size
    largest = max(1, *map(len, shares))
    config = replace(config, batch_size=min(config.batch_size, largest))
    pipeline = build_pipeline(run, config, classes)
    rows = 2 if config.cfg_scale != 1 and not config.guide else 1
    require_samples_fit(run, config.batch_size, config.precision, rows)
    settings = {**protocol(pipeline), "format": format}

    # refuses other settings, or more images
    ranks.on_main(lambda: _claim(folder, settings, done))
    _fill(folder, pipeline, shares, ranks)
    ranks.on_main(folder.finish)

    # gloo's threads must have sent everything before Python ends
    ranks.barrier()
    return out


def _fill(
    folder: "SampleFolder",
    pipeline: SamplingPipeline,
    shares: Sequence[Sequence[int]],
    ranks: Ranks,
) -> None:
    """Make and write the missing images, which `shares` has by rank."""
    total = len(folder.labels)
    before = total - sum(map(len, shares))
    writing: Future[None] | None = None

    with sampling_bar(total, before, ranks) as bar, ThreadPoolExecutor(1) as writer:
        # rank 0 counts for all: the others are about as far
        counted = pipeline.with_progress(progress_callback(bar, ranks.world))

        for made, indices in _batches(shares, pipeline.settings.batch_size, ranks):
            images, error = _make(counted, folder.labels, indices)
            # a batch is written while the next one is made
            failed_write = _error_of(writing)
            writing = None
            if len(images):
                writing = writer.submit(folder.write, indices.tolist(), images)

            # all ranks leave together: one that waits for another would hang
            ranks.raise_together(failed_write or error)
            bar.update(before + made - bar.n)
        ranks.raise_together(_error_of(writing))


def _batches(
    shares: Sequence[Sequence[int]], size: int, ranks: Ranks
) -> Iterator[tuple[int, Tensor]]:
    """Yield this rank's batches, and how many images all ranks have made after each.

    Every rank gets the same number of batches, if need be empty ones.
    """
    longest = max(map(len, shares))
    # `raise_together` is called after each batch, so as often on every rank
    for end in range(size, longest + size, size):
        mine = shares[ranks.rank][end - size : end]
        made = sum(min(end, len(share)) for share in shares)
        yield made, torch.tensor(mine, dtype=torch.int64)


def _make(
    pipeline: SamplingPipeline, labels: Sequence[int], indices: Tensor
) -> tuple[Tensor, Exception | None]:
    """Return a batch of images, or none and the error."""
    if not len(indices):
        return torch.empty(0), None
    try:
        return generate(pipeline, torch.tensor(labels)[indices], indices), None
    except Exception as error:  # the other ranks wait, so it is raised on all of them
        return torch.empty(0), error


def _error_of(writing: Future[None] | None) -> BaseException | None:
    """Wait for the end of a write and return its error."""
    return writing.exception() if writing else None


def sampling_bar(total: int, done: int, ranks: Ranks) -> tqdm:
    """Return a progress bar of images."""
    return tqdm(
        total=total,
        initial=done,
        unit="img",
        desc="sampling",
        bar_format=BAR,
        disable=not ranks.main,
        leave=None,
        miniters=1,
        # in a log file every change is another line of text
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )


def progress_callback(bar: tqdm, ranks: int = 1) -> Callable[[float], object]:
    """Return a function that counts images on each rank, parts of them too; the bar shows whole
    ones, and does not pass its end."""
    start, made = bar.n, 0.0

    def count(images: float) -> None:
        nonlocal made
        made += images * ranks
        # a sum of parts such as 1/3 may be a little less than the whole
        whole = start + int(made + 1e-6)
        bar.update(max(0, min(whole, bar.total) - bar.n))

    return count


# -- whose folder it is --------------------------------------------------------------------------


def _find_done(folder: "SampleFolder") -> set[int]:
    """Return the indices of the images in the folder; refuse a folder of something else."""
    out = folder.out
    require_own_folder(out, RECORD, "dit sample", (out / RECORD).is_file())
    return folder.done()


def _claim(folder: "SampleFolder", settings: dict[str, Any], done: set[int]) -> None:
    """Write samples.json, unless the folder has other settings or more images."""
    out, num_samples = folder.out, len(folder.labels)
    record = out / RECORD
    create_folder(out)
    if record.exists():
        _require_same(record, json.loads(json.dumps(settings)))  # JSON has lists for tuples

    # what an interrupted write has left
    for path in out.rglob(".*"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink()

    last = max(done, default=-1)
    if last >= num_samples:
        raise UserError(
            f"--num-samples {num_samples} for {out}, which already holds {len(done)} images",
            f"{last + 1} or more",
            "choose another --out",
        )
    write_json(record, {**settings, "num_samples": num_samples})

    # labels.csv marks a complete folder
    if not done.issuperset(range(num_samples)):
        (out / LABELS).unlink(missing_ok=True)


def _require_same(record: Path, settings: dict[str, Any]) -> None:
    do = "choose another --out"
    recorded = read_json(record, SampleRecord, "the settings that sample.py wrote", do)
    for key in [*settings, *recorded]:
        old, new = recorded.get(key), settings.get(key)
        if key != "num_samples" and old != new:
            given = f"{as_typed(SampleConfig, key, new)} for images that {record} says were made"
            raise UserError(
                f"{given} with {as_typed(SampleConfig, key, old)}",
                "the same settings for all images of a folder",
                "choose another --out, or sample with the settings of before",
            )


# -- how images lie in it ------------------------------------------------------------------------


class PngFolder:
    """One PNG an image and, for images with classes, labels.csv: file, label, class.

    Args:
        out: The folder.
        labels: Class id of each image.
        names: Class names by id; empty for unconditional runs.
    """

    def __init__(self, out: Path, labels: Sequence[int], names: Mapping[int, str]):
        self.out, self.labels, self.names = out, labels, names

    def done(self) -> set[int]:
        """Return the indices of the intact images."""
        files = (file for file in self.out.glob("*.png") if file.stem.isdigit())
        return {int(file.stem) for file in files if _is_intact(file)}

    def write(self, indices: list[int], images: Tensor) -> None:
        """Add images, uint8 [B, 3, H, W], each atomically."""
        files = [self.out / _png_name(i) for i in indices]
        with ThreadPoolExecutor(PNG_THREADS) as pool:
            list(pool.map(_write_png, files, images))

    def finish(self) -> None:
        """Write labels.csv once all images are done, unless it is complete."""
        file = self.out / LABELS
        lines = len(file.read_bytes().splitlines()) if file.exists() else 0
        if not self.names or lines == len(self.labels) + 1:
            return
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(["file", "label", "class"])
        for i, label in enumerate(self.labels):
            table.writerow([_png_name(i), label, self.names[label]])
        write_text(file, text.getvalue())


def _png_name(index: int) -> str:
    return f"{index:06d}.png"


def _write_png(file: Path, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    write_png(Image.fromarray(pixels), file)


def _is_intact(png: Path) -> bool:
    """Return whether the file has its last bytes, which a crash of the machine can lose."""
    with png.open("rb") as opened:
        opened.seek(0, 2)
        opened.seek(max(0, opened.tell() - len(PNG_END)))
        return opened.read() == PNG_END


class NpzFolder:
    """One archive in ADM's layout; until it is finished, parts/part-FIRST.npz.

    A part has the arrays `indices` and `images`. Arguments and methods are those of PngFolder.
    """

    def __init__(self, out: Path, labels: Sequence[int], names: Mapping[int, str]):
        self.out, self.labels, self.names = out, labels, names

    def done(self) -> set[int]:
        done = set(range(self._archived()))
        for part in self._parts():
            done.update(_read_indices(part))
        return done

    def write(self, indices: list[int], images: Tensor) -> None:
        part = self.out / PARTS / f"part-{indices[0]:06d}.npz"
        pixels = images.permute(0, 2, 3, 1).numpy()
        with write_atomically(part) as path, path.open("wb") as opened:
            np.savez(opened, indices=np.array(indices), images=pixels)

    def finish(self) -> None:
        # a complete archive stays: only its parts were left by an interruption
        if self._archived() < len(self.labels):
            arrays: dict[str, Any] = {"arr_0": self._collect()}
            if self.names:
                arrays["arr_1"] = np.array(self.labels, dtype=np.int64)
            with write_atomically(self.out / ARCHIVE) as path, path.open("wb") as opened:
                np.savez(opened, **arrays)

        for part in self._parts():
            part.unlink()
        if (self.out / PARTS).exists():
            (self.out / PARTS).rmdir()

    def _parts(self) -> list[Path]:
        return sorted((self.out / PARTS).glob("part-*.npz"))

    def _archived(self) -> int:
        """Return the number of images in samples.npz, from the header of its array."""
        file = self.out / ARCHIVE
        if not file.exists():
            return 0
        with reraise_as_user_error(file, "an intact archive", "remove it to sample again"):
            try:
                with zipfile.ZipFile(file) as archive, archive.open("arr_0.npy") as array:
                    np.lib.format.read_magic(array)
                    (count, *_), _, _ = np.lib.format.read_array_header_1_0(array)
                    return count
            except zipfile.BadZipFile as error:
                raise ValueError(error) from None

    def _collect(self) -> np.ndarray:
        """Return all images, uint8 [N, H, W, 3]."""
        images = np.empty(0)
        pieces: list[tuple[Path, str, Any]] = []
        # a folder that has grown
        if archived := self._archived():
            pieces.append((self.out / ARCHIVE, "arr_0", slice(0, archived)))
        for part in self._parts():
            pieces.append((part, "images", _read_indices(part)))

        # one file at a time: all of them may fill half of the memory
        for file, name, where in pieces:
            if where == []:
                continue
            with np.load(file) as arrays:
                pixels = arrays[name]
            if not len(images):
                shape = len(self.labels), *pixels.shape[1:]
                images = np.empty(shape, np.uint8)
            images[where] = pixels
        return images


def _read_indices(part: Path) -> list[int]:
    """Return the indices of the images in a part; none if it is damaged, as by a crash."""
    try:
        with np.load(part) as arrays:
            indices = arrays["indices"]
            pixels = arrays["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return []
    fits = indices.ndim == 1 and pixels.ndim == 4 and len(pixels) == len(indices)
    right = indices.dtype.kind == "i" and pixels.dtype == np.uint8
    return indices.tolist() if fits and right else []


SampleFolder = PngFolder | NpzFolder
