"""WebDataset's tar shards, with random access: a sample is its files of one key."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from dit.data.counts import count_of
from dit.data.images import ImageFiles, file_mark
from dit.data.labels import Columns, Labels
from dit.data.tar_labels import (
    FOLDER,
    TAR,
    LabelReader,
    LabelSource,
    class_of_tar,
    names_of_folders,
    tars_are_classes,
)
from dit.data.tar_samples import Sample, find_image, list_samples, open_tar
from dit.errors import UserError
from dit.utils.files import name_to_bytes, reraise_as_user_error
from dit.utils.image_size import Size

CLASS_NAMES = "classnames.txt"  # beside the shards, a class a line


class TarImages(ImageFiles):
    """The images of tar shards, in their order. Headers are read once; then access is random.

    A class is the number or name in .cls, or `label` of .json; classnames.txt beside the shards
    names the numbers. Shards of nothing but images have the classes of their folders, or one class
    a tar. A caption is .txt, or `caption` of .json. The first sample decides which, and all others
    must have it too.

    Args:
        columns: image and label are an extension; label may also be a key of .json, `folder` or
            `tar`.

    Attributes:
        notes: where classes come from, and what was left out, for the user.
        tar_is_class: whether the name of a tar is the class of its images.
    """

    def __init__(self, shards: Sequence[Path], image_size: Size, columns: Columns):
        self.image_size = image_size
        self.flips = not columns.captions
        self.tar_is_class = columns.label == TAR
        self._shards = list(shards)
        self._shard_marks = [f"{shard.name} {file_mark(shard)}" for shard in shards]
        self._names: list[str] = []
        index: list[tuple[int, int, int]] = []
        values: list[Any] = []
        reader = LabelReader(columns)
        left_out = LeftOut()

        bar = tqdm(self._shards, unit="tar", desc="index", disable=len(shards) < 10)
        for number, shard in enumerate(bar):
            with open_tar(shard) as tar:
                samples, without_key = list_samples(tar, shard, columns.image)
                left_out.add_files(without_key)
                for sample in samples:
                    image = find_image(sample, columns.image, shard)
                    if image is None:
                        left_out.add_sample(sample, shard)
                        continue
                    self._names.append(image.name)
                    index.append((number, image.offset_data, image.size))
                    values.append(reader.read(tar, sample, f"{image.name} in {shard}"))

        if not index:
            others = f" and {len(shards) - 1} others" if shards[1:] else ""
            raise UserError(
                f"no images in {shards[0]}{others}, but {left_out.kinds or 'no files'}",
                "samples such as 0001.jpg with 0001.cls, 0001.txt or 0001.json",
                "unpack tars that are in the tar, or check the path",
            )
        self._index = np.array(index, np.int64)  # [N, 3]: shard, offset, size
        self.labels = np.zeros(len(index), np.int64)
        self.classes: list[str] = []
        self.notes = left_out.notes

        source = str(reader.source or "")
        if reader.source:
            left_out.refuse_labels(reader.source)
        elif columns.classes != "none":
            values, source = self._names_of_classes(columns)
        if source:
            self._set_classes(values, columns.captions)
            self.notes = [f"classes from {source}", *self.notes]

    def _names_of_classes(self, columns: Columns) -> tuple[list[str], str]:
        """Return the class of each image by the names of folders or tars, and which in words."""
        shards = self._index[:, 0].tolist()
        by_tar = [class_of_tar(self._shards[i]) for i in shards]
        if self.tar_is_class:
            return by_tar, "the names of the tars"
        column = columns.label
        folders = names_of_folders(self._names, columns.classes == "ask" or column == FOLDER)
        # a folder in each tar, of the tar's name, says no more than that name
        if folders and (column == FOLDER or folders != [self._shards[i].stem for i in shards]):
            return folders, "the folders in the tars"
        if column == FOLDER:
            raise UserError(
                f"--label-column {FOLDER} and all images in one folder, such as {self._names[0]}",
                "a folder for each class",
                f"drop it, or pass --label-column {TAR} if each tar is a class",
            )
        if tars_are_classes(self._shards):
            self.tar_is_class = True
            return by_tar, "the names of the tars"
        return [], ""

    def _set_classes(self, values: list[Any], captions: bool) -> None:
        names = None if captions else _class_names(self._shards[0].parent)
        labels = Labels(captions, names)
        checked = [labels.check(value, self.name(i)) for i, value in enumerate(values)]
        self.classes = labels.classes(checked)
        self.labels = labels.to_ids(checked, self.classes)

    def name(self, index: int) -> str:
        return f"{self._names[index]} in {self._shards[self._index[index][0]]}"

    def open(self, index: int) -> BinaryIO:
        shard, offset, size = self._index[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def mark(self, index: int) -> str:
        shard, offset, size = self._index[index].tolist()
        return f"{self._shard_marks[shard]} {self._names[index]} {offset} {size}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shards, members and classes, in order; not over the shards' folder."""
        classes = json.dumps(self.classes)
        digest = hashlib.sha256(classes.encode() + self.labels.tobytes())
        for name, (shard, *span) in zip(self._names, self._index.tolist(), strict=True):
            digest.update(name_to_bytes(f"{self._shards[shard].name}/{name} {span}\n"))
        return digest.hexdigest()


class LeftOut:
    """The files of tars that are no images and belong to none."""

    def __init__(self) -> None:
        self._extensions: Counter[str] = Counter()
        self._first: dict[str, str] = {}  # by extension

    def add_files(self, names: Sequence[str]) -> None:
        """Count files such as README."""
        self._extensions.update("without extension" for _ in names)

    def add_sample(self, sample: Sample, shard: Path) -> None:
        """Count the files of a sample that has no image."""
        for extension, member in sample.files.items():
            self._extensions[f".{extension}"] += 1
            self._first.setdefault(extension, f"{member.name} in {shard}")

    def refuse_labels(self, source: LabelSource) -> None:
        """Refuse a label without an image."""
        if source.member in self._first:
            raise UserError(
                f"{self._first[source.member]} has no image",
                "an image for every label",
                "add the image, or remove the label",
            )

    @property
    def kinds(self) -> str:
        """The most frequent kinds, such as 2 .txt, 1 .psd."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self._extensions.most_common(5))

    @property
    def notes(self) -> list[str]:
        """A line with their number, if there are any."""
        total = self._extensions.total()
        files = count_of(total, "file")
        return [f"{files} in the tars left out ({self.kinds})"] if total else []


def list_tars(folder: Path) -> list[Path]:
    """Return the tar shards of a folder, sorted."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def require_one_kind(folder: Path, shards: Sequence[Path]) -> None:
    """Refuse shards of several data sets or splits in one folder."""
    prefixes = {path.stem.rstrip("0123456789"): path for path in shards}
    if len(prefixes) > 1:
        one, other = list(prefixes.values())[:2]
        raise UserError(
            f"{folder} has several kinds of tar shards: {one.name}, {other.name}",
            "shards of one data set",
            f"pass one kind of them, such as '{folder / next(iter(prefixes))}*.tar'; or "
            f"--label-column {TAR}, if each is a class, or {FOLDER}, if their folders are",
        )


def _class_names(folder: Path) -> list[str] | None:
    file = folder / CLASS_NAMES
    if not file.is_file():
        return None
    with reraise_as_user_error(file, "a class a line, in UTF-8", "write it again"):
        text = file.read_text(encoding="utf-8-sig")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line]
