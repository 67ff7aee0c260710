"""Folders of samples: filled across ranks, continued where they were interrupted."""

import csv
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit.config import SamplerConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.sampling.generate import generate
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.sampling.protocol import protocol
from dit.utils.files import make_folder, reraise_as_user_error, write_atomically, write_json

RECORD, LABELS, ARCHIVE, PARTS = "samples.json", "labels.csv", "samples.npz", "parts"
LEFTOVER = re.compile(r"\.(\d{6,}\.png|samples\.json|samples\.npz|labels\.csv|part-\d+\.npz)\.\d+")
PNG_END = b"IEND\xaeB`\x82"
WRITERS = 4  # threads that compress PNGs
BAR = "{l_bar}{bar}| {n:,.1f}/{total:,} img [{elapsed}<{remaining}, {rate_fmt}]"


def sample_folder(
    run: LoadedRun,
    config: SamplerConfig,
    classes: Sequence[int],
    num_samples: int,
    out: Path,
    format: str,
    ranks: Ranks,
) -> Path:
    """Fill a folder with images; image i has class `classes[i % len(classes)]`.

    `png`: 000000.png, …, and labels.csv once all are there. `npz`: samples.npz in ADM's layout (arr_0 uint8
    [N, H, W, 3], arr_1 int64 [N]), collected from parts. Of an unconditional run there is neither labels.csv nor
    arr_1. Beside them samples.json, the settings. A folder that
    was interrupted, or made with a smaller `num_samples`, is completed; rank r makes the images i % world == r.

    Raises:
        UserError: the folder holds something else, other settings, or more images.
        NotFinite: on all ranks, soon after an image of any of them came out as NaN or infinite.
        OSError: on all ranks, soon after any of them could not write its images; so does any other error end all.
    """
    names = {} if run.card.unconditional else {c: run.card.class_name(c) for c in classes}
    folder = (PngFolder if format == "png" else NpzFolder)(out, classes, names)
    done = ranks.on_main(lambda: _look_into(folder))
    shares = [
        [i for i in range(rank, num_samples, ranks.world) if i not in done]
        for rank in range(ranks.world)
    ]
    there, most = num_samples - sum(map(len, shares)), max(map(len, shares))
    config = replace(
        config, batch_size=min(config.batch_size, max(most, 1))
    )  # compiled code fills all up to it
    plan = build_pipeline(run, config)
    settings = {**protocol(run, plan, config, classes), "format": format}
    ranks.on_main(lambda: _claim(folder, settings, num_samples, done))
    write: Future[None] | None = None  # of the batch before, while the next one is made
    with sampling_bar(num_samples, there, ranks) as bar, ThreadPoolExecutor(1) as writer:
        counting = plan.counting(progress_callback(bar, ranks.world))  # the others are about as far
        for made, indices in _batches(shares, config.batch_size, ranks):
            images, failed = _make(run, counting, config, classes, indices)
            unwritten = _failure(write)
            write = writer.submit(folder.write, indices.tolist(), images) if len(images) else None
            ranks.agree(unwritten or failed)
            bar.update(there + made - bar.n)
        ranks.agree(_failure(write))
    ranks.on_main(lambda: folder.complete(num_samples) or folder.finish(num_samples))
    ranks.barrier()  # so that gloo has let go of what went around, which its threads must not do while Python ends
    return out


def sampling_bar(total: int, there: int, ranks: Ranks) -> tqdm:
    """Of images, parts of them counted too; in a file, where every change is more text, it moves twice a minute."""
    return tqdm(
        total=total,
        initial=there,
        unit="img",
        desc="sampling",
        bar_format=BAR,
        disable=not ranks.main,
        leave=None,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )


def progress_callback(bar: tqdm, times: int = 1) -> Callable[[float], object]:
    """Moves the bar by images, of so many ranks, but not past its end: others may have fewer to make."""
    return lambda images: bar.update(min(images * times, bar.total - bar.n))


def _batches(
    shares: Sequence[Sequence[int]], size: int, ranks: Ranks
) -> Iterator[tuple[int, Tensor]]:
    """This rank's images in parts, equally many on every rank (some empty), each with what all ranks have after it."""
    for end in range(size, max(map(len, shares)) + size, size):
        mine = torch.tensor(shares[ranks.rank][end - size : end], dtype=torch.int64)
        yield sum(min(end, len(share)) for share in shares), mine


class SampleFolder(Protocol):
    """How images lie in a folder."""

    out: Path

    def done(self) -> set[int]:
        """Indices of the images that are there, whole."""

    def tidy(self) -> None:
        """Remove what a crash has cut short and nothing is written over."""

    def write(self, indices: list[int], images: Tensor) -> None:
        """Add images, uint8 [B, 3, H, W]; each is there whole or not at all."""

    def complete(self, num_samples: int) -> bool:
        """Whether `finish` has been done."""

    def finish(self, num_samples: int) -> None:
        """Bring the folder into its last form, once all images are there."""


def _make(
    run: LoadedRun,
    plan: SamplingPipeline,
    config: SamplerConfig,
    classes: Sequence[int],
    indices: Tensor,
) -> tuple[Tensor, Exception | None]:
    """One batch; or none, and why."""
    if not len(indices):
        return torch.empty(0), None
    try:
        return generate(
            run, plan, config, torch.tensor(classes)[indices % len(classes)], indices
        ), None
    except Exception as error:  # the other ranks wait, whatever it is
        return torch.empty(0), error


def _failure(write: Future[None] | None) -> BaseException | None:
    """What went wrong in a write, once it has ended."""
    return write.exception() if write else None


def _look_into(folder: SampleFolder) -> set[int]:
    """Which images it has, if it may be filled."""
    _check_folder(folder.out)
    return folder.done()


def _claim(
    folder: SampleFolder, settings: dict[str, Any], num_samples: int, done: set[int]
) -> None:
    """Take the folder, which has the images `done`, for these settings."""
    record = folder.out / RECORD
    make_folder(folder.out)
    if record.exists():
        _check_settings(
            _read_record(record), json.loads(json.dumps(settings)), record
        )  # where tuples are lists
    folder.tidy()
    for leftover in folder.out.rglob(".*"):
        if LEFTOVER.fullmatch(leftover.name):
            leftover.unlink()
    if max(done, default=-1) >= num_samples:
        raise UserError(
            f"--num-samples {num_samples} for {folder.out}, which already holds {len(done)} images",
            f"{max(done) + 1} or more",
            "choose another --out",
        )
    write_json(record, {**settings, "num_samples": num_samples})
    if not done.issuperset(range(num_samples)):
        (folder.out / LABELS).unlink(
            missing_ok=True
        )  # of a smaller folder: while there are labels, it is complete


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(
            f"--out {out} is a file", "a folder, new or made by sample.py", "choose another --out"
        )
    if not out.exists() or (out / RECORD).exists():
        return
    for path in out.iterdir():
        if not LEFTOVER.fullmatch(path.name):
            raise UserError(
                f"--out {out} holds {path.name} and no {RECORD}",
                "a folder that is new, empty or made by sample.py",
                "choose another --out",
            )


def _read_record(record: Path) -> dict[str, Any]:
    with reraise_as_user_error(record, "the settings that sample.py wrote", "choose another --out"):
        return dict(json.loads(record.read_text()))


def _check_settings(recorded: dict[str, Any], settings: dict[str, Any], record: Path) -> None:
    for key in [*settings, *recorded]:
        old, new = recorded.get(key), settings.get(key)
        if key != "num_samples" and old != new:
            raise UserError(
                f"{key} {json.dumps(new)} for images that {record} says were made with {json.dumps(old)}",
                "the same settings for all images of a folder",
                "choose another --out, or sample with the settings of before",
            )


class PngFolder:
    """One PNG an image and, where these have names, a table of labels."""

    def __init__(self, out: Path, classes: Sequence[int], names: Mapping[int, str]):
        self.out, self.classes, self.names = out, classes, names

    def done(self) -> set[int]:
        return {
            int(file.stem)
            for file in self.out.glob("*.png")
            if file.stem.isdigit() and _is_whole(file)
        }

    def tidy(self) -> None:
        pass

    def write(self, indices: list[int], images: Tensor) -> None:
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(_write_png, [self.out / _png_name(i) for i in indices], images))

    def complete(self, num_samples: int) -> bool:
        table = self.out / LABELS
        return not self.names or (
            table.exists() and len(table.read_text().splitlines()) == num_samples + 1
        )

    def finish(self, num_samples: int) -> None:
        """Write labels.csv: file, label, class."""
        labels = [self.classes[i % len(self.classes)] for i in range(num_samples)]
        with write_atomically(self.out / LABELS) as beside, beside.open("w", newline="") as opened:
            table = csv.writer(opened)
            table.writerow(["file", "label", "class"])
            table.writerows(
                [_png_name(i), label, self.names[label]] for i, label in enumerate(labels)
            )


def _png_name(index: int) -> str:
    return f"{index:06d}.png"


def _write_png(file: Path, image: Tensor) -> None:
    with write_atomically(file) as beside:
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(beside, format="PNG")


def _is_whole(png: Path) -> bool:
    """Whether the file has its last bytes: a crash of the machine can leave it without."""
    with png.open("rb") as opened:
        opened.seek(0, 2)
        opened.seek(max(0, opened.tell() - len(PNG_END)))
        return opened.read() == PNG_END


class NpzFolder:
    """One archive in ADM's layout; while it grows, `parts/part-FIRST.npz` with the arrays `indices` and `images`.

    Without names of classes it has no labels.
    """

    def __init__(self, out: Path, classes: Sequence[int], names: Mapping[int, str]):
        self.out, self.classes, self.names = out, classes, names

    def _parts(self) -> list[Path]:
        return sorted((self.out / PARTS).glob("part-*.npz"))

    def _archived(self) -> int:
        """How many images samples.npz has."""
        if not (self.out / ARCHIVE).exists():
            return 0
        with reraise_as_user_error(
            self.out / ARCHIVE, "an intact archive", "remove it to sample again"
        ):
            try:
                with (
                    zipfile.ZipFile(self.out / ARCHIVE) as archive,
                    archive.open("arr_0.npy") as array,
                ):
                    np.lib.format.read_magic(array)
                    (count, *_), _, _ = np.lib.format.read_array_header_1_0(array)
                    return count
            except zipfile.BadZipFile as error:
                raise ValueError(error) from None

    def done(self) -> set[int]:
        done = set(range(self._archived()))
        return done.union(*(_indices(part) or () for part in self._parts()))

    def tidy(self) -> None:
        for part in self._parts():
            if _indices(part) is None:
                part.unlink()

    def write(self, indices: list[int], images: Tensor) -> None:
        with (
            write_atomically(self.out / PARTS / f"part-{indices[0]:06d}.npz") as beside,
            beside.open("wb") as opened,
        ):
            np.savez(opened, indices=np.array(indices), images=images.permute(0, 2, 3, 1).numpy())

    def complete(self, num_samples: int) -> bool:
        return self._archived() == num_samples and not (self.out / PARTS).exists()

    def finish(self, num_samples: int) -> None:
        """Collect the parts in samples.npz and remove them."""
        labels = np.array(
            [self.classes[i % len(self.classes)] for i in range(num_samples)], dtype=np.int64
        )
        if self._archived() < num_samples:
            arrays: dict[str, Any] = {
                "arr_0": self._collect(num_samples),
                **({"arr_1": labels} if self.names else {}),
            }
            with write_atomically(self.out / ARCHIVE) as beside, beside.open("wb") as opened:
                np.savez(opened, **arrays)
        for part in self._parts():
            part.unlink()
        if (self.out / PARTS).exists():
            (self.out / PARTS).rmdir()

    def _collect(self, num_samples: int) -> np.ndarray:
        """[N, H, W, 3] uint8."""
        pieces = (
            [(slice(0, self._archived()), self.out / ARCHIVE, "arr_0")] if self._archived() else []
        )
        images: np.ndarray | None = None
        for where, file, name in [*pieces, *((None, part, "images") for part in self._parts())]:
            with np.load(file) as arrays:
                piece = arrays[name]
                images = (
                    np.empty((num_samples, *piece.shape[1:]), np.uint8)
                    if images is None
                    else images
                )
                images[arrays["indices"] if where is None else where] = piece
        assert images is not None, "no images"
        return images


def _indices(part: Path) -> list[int] | None:
    """Of the images in a part; None where a crash of the machine has cut it short."""
    try:
        with np.load(part) as arrays:
            return arrays["indices"].tolist()
    except (ValueError, EOFError, zipfile.BadZipFile):
        return None
