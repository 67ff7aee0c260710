"""WebDataset's tar shards, read with random access: files of one name, but for their extensions, are one sample."""

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

from dit.data.images import ImageFiles, is_image
from dit.data.labels import Columns, Labels
from dit.errors import UserError
from dit.utils.image_size import Size

NAMES = "classnames.txt"  # beside the shards, a class a line
MEMBERS = {False: ("cls",), True: ("txt", "caption")}  # by whether captions are asked for
KEYS = {False: ("label", "cls", "class"), True: ("caption", "text")}  # of a member .json

Sample = dict[str, tarfile.TarInfo]  # by extension, in lower case


class LabelPlace(NamedTuple):
    """Where a sample says its class or caption: in a member, or under a key of a member .json."""

    member: str
    key: str | None


class TarImages(ImageFiles):
    """The images of tar shards, in their order; their headers are read once, and after that any image at a time.

    A class is what .cls, or `label` of .json, says: its number or its name; numbers are named by classnames.txt, where
    that lies beside the shards. A caption is .txt, or `caption` of .json. What the first sample has decides. Samples
    without an image are left out.

    Args:
        columns: image and label are an extension; label may also be a key of .json.

    Raises:
        UserError: a shard is damaged or compressed, there are no images, or a sample has no class or caption; when an
            image is asked for: it can not be read.
    """

    def __init__(self, shards: Sequence[Path], image_size: Size, columns: Columns):
        self.image_size, self.flips = image_size, not columns.captions
        self._shards = list(shards)
        self._names: list[str] = []
        labels = Labels(
            columns.captions, None if columns.captions else _class_names(shards[0].parent)
        )
        places, values, place = [], [], None
        for number, shard in enumerate(
            tqdm(self._shards, unit="tar", desc="index", disable=len(shards) < 10)
        ):
            for tar, sample in _samples(shard):
                image = _image(sample, columns, shard)
                if image is None:
                    continue
                if not self._names:
                    place = _label_place(tar, sample, columns, f"{image.name} in {shard}")
                self._names.append(image.name)
                places.append((number, image.offset_data, image.size))
                if place:
                    value = _value(tar, sample, place, columns)
                    values.append(labels.check(value, f"{image.name} in {shard}"))
        if not places:
            raise UserError(
                f"no images in {shards[0]}"
                + (f" and {len(shards) - 1} others" if shards[1:] else ""),
                "samples such as 0001.jpg with 0001.cls, 0001.txt or 0001.json",
                "check the path",
            )
        self._places = np.array(places, np.int64)  # [N, 3]: shard, offset, size
        self.classes = labels.classes(values) if place else []
        self.labels = (
            labels.number(values, self.classes) if place else np.zeros(len(places), np.int64)
        )

    def name(self, index: int) -> str:
        """Where image `index` is stored, in words."""
        return f"{self._names[index]} in {self._shards[self._places[index][0]]}"

    def open(self, index: int) -> BinaryIO:
        """The file of image `index`."""
        shard, offset, size = self._places[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shards, members and classes, in order, wherever the shards lie."""
        digest = hashlib.sha256(json.dumps(self.classes).encode() + self.labels.tobytes())
        for name, (shard, *place) in zip(self._names, self._places.tolist(), strict=True):
            digest.update(f"{self._shards[shard].name}/{name} {place}\n".encode())
        return digest.hexdigest()


def tars_in(folder: Path) -> list[Path]:
    """The tar shards of a folder, in alphabetical order.

    Raises:
        UserError: their names differ by more than numbers: then they are several data sets, or splits of one.
    """
    found = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    kinds = {path.stem.rstrip("0123456789"): path for path in found}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise UserError(
            f"{folder} has several kinds of tar shards: {one.name}, {other.name}",
            "shards of one data set",
            f"pass the shards that you mean, such as '{folder / next(iter(kinds))}*.tar'",
        )
    return found


def _samples(shard: Path) -> Iterator[tuple[tarfile.TarFile, Sample]]:
    """Members of a shard, those of one name and one after the other together, as WebDataset has it."""
    from webdataset.tariterators import base_plus_ext

    try:
        with tarfile.open(shard, "r:") as tar:
            before, sample = None, Sample()
            for member in tar:
                name, extension = base_plus_ext(member.name)
                if not member.isreg() or name is None:
                    continue
                if name != before and sample:
                    yield tar, sample
                    sample = {}
                before = name
                sample[extension.lower()] = member
            if sample:
                yield tar, sample
            _check_end(shard, tar.offset)
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{shard} can not be read as a tar ({error})",
            "an intact tar file, not compressed",
            "fetch it again, unpack a .tar.gz, or pass the shards without it",
        ) from error


def _check_end(shard: Path, offset: int) -> None:
    """Whether a shard ends there as a tar does: tarfile takes a missing or a damaged header for the end, too."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off at byte {offset:,}")


def _image(sample: Sample, columns: Columns, shard: Path) -> tarfile.TarInfo | None:
    """The one image of a sample, if it has one."""
    if columns.image:
        return sample.get(columns.image.lower())
    found = [member for extension, member in sample.items() if is_image(f"x.{extension}")]
    if len(found) > 1:
        raise UserError(
            f"{found[0].name} and {found[1].name} in {shard} are images of one sample",
            "one image a sample",
            "choose by --image-column, such as --image-column jpg",
        )
    return found[0] if found else None


def _label_place(
    tar: tarfile.TarFile, sample: Sample, columns: Columns, where: str
) -> LabelPlace | None:
    """Where samples like this one say their class or caption; nowhere where there are no classes."""
    values = _json(tar, sample) if "json" in sample else {}
    members = (columns.label.lower(),) if columns.label else MEMBERS[columns.captions]
    keys = (columns.label,) if columns.label else KEYS[columns.captions]
    places = [LabelPlace(member, None) for member in members if member in sample]
    places += [LabelPlace("json", key) for key in keys if key in values]
    if not places and (columns.label or columns.captions):
        what = f"--label-column {columns.label}" if columns.label else "--captions"
        raise UserError(
            f"{what} and no such thing in {where}",
            f"one of its members {', '.join(sample)}"
            + (f" or keys {', '.join(values)}" if values else ""),
            "choose by --label-column",
        )
    return places[0] if places else None


def _value(tar: tarfile.TarFile, sample: Sample, place: LabelPlace, columns: Columns) -> Any:
    """What a sample says there; None if nothing."""
    if place.member not in sample:
        return None
    if place.key is not None:
        return _json(tar, sample).get(place.key)
    text = _read(tar, sample[place.member]).decode(errors="replace").strip()
    return int(text) if not columns.captions and text.lstrip("-").isdecimal() else text


def _json(tar: tarfile.TarFile, sample: Sample) -> dict[str, Any]:
    try:
        values = json.loads(_read(tar, sample["json"]))
    except ValueError as error:
        raise UserError(
            f"{sample['json'].name} in {tar.name!r} is damaged ({error})",
            "a JSON object",
            "mend it",
        ) from None
    return values if isinstance(values, dict) else {}


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "only regular files are kept"
    return file.read()


def _class_names(folder: Path) -> list[str] | None:
    file = folder / NAMES
    if not file.is_file():
        return None
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]
