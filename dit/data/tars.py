"""WebDataset's tar shards, with random access: files of one name before the dot are a sample."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from dit.data.image_formats import is_image
from dit.data.images import ImageFiles
from dit.data.labels import Columns, Labels
from dit.errors import UserError
from dit.utils.image_size import Size

CLASS_NAMES = "classnames.txt"  # beside the shards, a class a line
MEMBERS = {False: ("cls",), True: ("txt", "caption")}  # by whether captions are asked for
KEYS = {False: ("label", "cls", "class"), True: ("caption", "text")}  # of a member .json

Sample = dict[str, tarfile.TarInfo]  # by extension, in lower case


class LabelSource(NamedTuple):
    """The part of a sample with its label: a member, or a key of its member .json."""

    member: str
    key: str | None


class TarImages(ImageFiles):
    """The images of tar shards, in their order. Headers are read once; then access is random.

    A class is the number or name in .cls, or `label` of .json; classnames.txt beside the shards
    names the numbers. A caption is .txt, or `caption` of .json. The first sample decides which.
    Samples without an image are skipped.

    Args:
        columns: image and label are an extension; label may also be a key of .json.
    """

    def __init__(self, shards: Sequence[Path], image_size: Size, columns: Columns):
        self.image_size = image_size
        self.flips = not columns.captions
        self._shards = list(shards)
        self._names: list[str] = []
        names = None if columns.captions else _class_names(shards[0].parent)
        labels = Labels(columns.captions, names)
        index: list[tuple[int, int, int]] = []
        values = []
        source = None

        bar = tqdm(self._shards, unit="tar", desc="index", disable=len(shards) < 10)
        for number, shard in enumerate(bar):
            for tar, sample in _samples(shard):
                image = _find_image(sample, columns, shard)
                if image is None:
                    continue
                where = f"{image.name} in {shard}"
                # one source for all: a later sample without it is a mistake, not another class
                if not index:
                    source = _find_label_source(tar, sample, columns, where)
                self._names.append(image.name)
                index.append((number, image.offset_data, image.size))
                if source:
                    values.append(labels.check(_read_label(tar, sample, source, columns), where))

        if not index:
            others = f" and {len(shards) - 1} others" if shards[1:] else ""
            raise UserError(
                f"no images in {shards[0]}{others}",
                "samples such as 0001.jpg with 0001.cls, 0001.txt or 0001.json",
                "check the path",
            )
        self._index = np.array(index, np.int64)  # [N, 3]: shard, offset, size
        self.classes = labels.classes(values) if source else []
        self.labels = np.zeros(len(index), np.int64)
        if source:
            self.labels = labels.to_ids(values, self.classes)

    def name(self, index: int) -> str:
        return f"{self._names[index]} in {self._shards[self._index[index][0]]}"

    def open(self, index: int) -> BinaryIO:
        shard, offset, size = self._index[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shards, members and classes, in order; not over the shards' folder."""
        classes = json.dumps(self.classes)
        digest = hashlib.sha256(classes.encode() + self.labels.tobytes())
        for name, (shard, *span) in zip(self._names, self._index.tolist(), strict=True):
            digest.update(f"{self._shards[shard].name}/{name} {span}\n".encode())
        return digest.hexdigest()


def list_tars(folder: Path) -> list[Path]:
    """Return the tar shards of a folder, sorted; refuse shards of several data sets or splits."""
    shards = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    prefixes = {path.stem.rstrip("0123456789"): path for path in shards}
    if len(prefixes) > 1:
        one, other = list(prefixes.values())[:2]
        raise UserError(
            f"{folder} has several kinds of tar shards: {one.name}, {other.name}",
            "shards of one data set",
            f"pass one kind of them, such as '{folder / next(iter(prefixes))}*.tar'",
        )
    return shards


# -- reading shards --------------------------------------------------------------------------------


def _samples(shard: Path) -> Iterator[tuple[tarfile.TarFile, Sample]]:
    """Group neighbouring members of one name, as WebDataset does."""
    from webdataset.tariterators import base_plus_ext

    try:
        with tarfile.open(shard, "r:") as tar:
            previous, sample = None, Sample()
            for member in tar:
                # the extension starts at the first dot of the file name, as in WebDataset
                name, extension = base_plus_ext(member.name)
                if not member.isreg() or name is None:
                    continue
                if name != previous and sample:
                    yield tar, sample
                    sample = {}
                previous = name
                sample[extension.lower()] = member
            if sample:
                yield tar, sample
            _check_end(shard, tar.offset)
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{shard} cannot be read as a tar ({error})",
            "an intact tar file, not compressed",
            "copy it again, unpack a .tar.gz, or pass the shards without it",
        ) from error


def _check_end(shard: Path, offset: int) -> None:
    # tarfile takes a missing or damaged header for the end of the file; a real end is a zero block
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off at byte {offset:,}")


def _find_image(sample: Sample, columns: Columns, shard: Path) -> tarfile.TarInfo | None:
    if columns.image:
        return sample.get(columns.image.lower())
    images = [member for extension, member in sample.items() if is_image(f"x.{extension}")]
    if len(images) > 1:
        raise UserError(
            f"{images[0].name} and {images[1].name} in {shard} are images of one sample",
            "one image a sample",
            "choose by --image-column, such as --image-column jpg",
        )
    return images[0] if images else None


# -- labels ----------------------------------------------------------------------------------------


def _find_label_source(
    tar: tarfile.TarFile, sample: Sample, columns: Columns, where: str
) -> LabelSource | None:
    """Return where samples like this one keep their label; None where there are no classes."""
    values = _read_json(tar, sample) if "json" in sample else {}
    members = (columns.label.lower(),) if columns.label else MEMBERS[columns.captions]
    keys = (columns.label,) if columns.label else KEYS[columns.captions]
    sources = [LabelSource(member, None) for member in members if member in sample]
    sources += [LabelSource("json", key) for key in keys if key in values]

    if not sources and (columns.label or columns.captions):
        flag = f"--label-column {columns.label}" if columns.label else "--captions"
        or_keys = f" or keys {', '.join(values)}" if values else ""
        raise UserError(
            f"{flag} and no such thing in {where}",
            f"one of its members {', '.join(sample)}{or_keys}",
            "choose by --label-column",
        )
    return sources[0] if sources else None


def _read_label(tar: tarfile.TarFile, sample: Sample, source: LabelSource, columns: Columns) -> Any:
    if source.member not in sample:
        return None
    if source.key is not None:
        return _read_json(tar, sample).get(source.key)
    # captions that are numbers stay texts
    text = _read_member(tar, sample[source.member]).decode(errors="replace").strip()
    is_number = not columns.captions and text.lstrip("-").isdecimal()
    return int(text) if is_number else text


def _read_json(tar: tarfile.TarFile, sample: Sample) -> dict[str, Any]:
    try:
        values = json.loads(_read_member(tar, sample["json"]))
    except ValueError as error:
        file = f"{sample['json'].name} in {tar.name!r}"
        raise UserError(f"{file} is damaged ({error})", "a JSON object", "correct it") from None
    return values if isinstance(values, dict) else {}


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "only regular files are kept"
    return file.read()


def _class_names(folder: Path) -> list[str] | None:
    file = folder / CLASS_NAMES
    if not file.is_file():
        return None
    lines = [line.strip() for line in file.read_text().splitlines()]
    return [line for line in lines if line]
