"""The labels of samples in tar shards: of a member, a key of .json, a folder, or the tar's name."""

import posixpath
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dit.data.image_formats import is_image
from dit.data.labels import Columns, ask_for_labels, is_number
from dit.data.tar_samples import Sample
from dit.errors import UserError
from dit.utils.typed_json import WrongJson, parse_json

MEMBERS = {False: ("cls",), True: ("txt", "caption")}  # by whether captions are asked for
KEYS = {False: ("label", "cls", "class"), True: ("caption", "text")}  # of a member .json
FOLDER, TAR = "folder", "tar"  # --label-column: a folder's or a tar's name is the class
NO_CLASSES = {"train", "training", "val", "valid", "validation", "dev", "test", "data", "images"}


class LabelSource(NamedTuple):
    """The part of a sample with its label: a member, or a key of its member .json."""

    member: str
    key: str | None

    def __str__(self) -> str:
        return f"{self.key} in .json" if self.key else f".{self.member}"


class LabelReader:
    """Read the labels of samples in order; the first sample decides where all have theirs.

    Attributes:
        source: where that is; None where there are none.
    """

    def __init__(self, columns: Columns):
        self.source: LabelSource | None = None
        self._columns = columns
        self._first = ""  # the first image, for messages

    def read(self, tar: tarfile.TarFile, sample: Sample, where: str) -> Any:
        """Return the label of a sample; refuse one without, or with, if the first is not alike.

        Args:
            where: its image, for messages.
        """
        columns = self._columns
        if columns.classes == "none" or columns.label in (FOLDER, TAR):
            return None
        if not self._first:
            self._first = where
            self.source = _find_label_source(tar, sample, columns, where)
        elif self.source is None and columns.classes == "ask" and _others(sample):
            raise UserError(
                f"{self._first} is an image alone, and {where} has .{_others(sample)[0]}",
                "a label for every image, or for none",
                "add those that are missing, or pass --num-classes 0 for no classes",
            )
        return _read_label(tar, sample, self.source, columns, where) if self.source else None


def _find_label_source(
    tar: tarfile.TarFile, sample: Sample, columns: Columns, where: str
) -> LabelSource | None:
    """Return where samples like this one keep their label; None where there are no classes."""
    values = _read_json(tar, sample) if "json" in sample.files else {}
    members = (columns.label.lower(),) if columns.label else MEMBERS[columns.captions]
    keys = (columns.label,) if columns.label else KEYS[columns.captions]
    sources = [LabelSource(member, None) for member in members if member in sample.files]
    sources += [LabelSource("json", key) for key in keys if key in values]

    if sources:
        return sources[0]
    if columns.label or columns.captions:
        flag = f"--label-column {columns.label}" if columns.label else "--captions"
        or_keys = f" or keys {', '.join(values)}" if values else ""
        raise UserError(
            f"{flag} and no such thing in {where}",
            f"one of its members {', '.join(sample.files)}{or_keys}",
            "choose by --label-column",
        )
    if columns.classes == "ask" and _others(sample):
        candidates = [*(name for name in _others(sample) if name != "json"), *values]
        has_texts = not {*candidates}.isdisjoint((*MEMBERS[True], *KEYS[True]))
        raise ask_for_labels(f"{where} has no .cls", candidates or ["json"], has_texts)
    return None


def _others(sample: Sample) -> list[str]:
    return [extension for extension in sample.files if not is_image(f"x.{extension}")]


def _read_label(
    tar: tarfile.TarFile, sample: Sample, source: LabelSource, columns: Columns, where: str
) -> Any:
    values = {}
    if source.key and source.member in sample.files:
        values = _read_json(tar, sample)
    if source.member not in sample.files or (source.key and source.key not in values):
        raise UserError(
            f"{where} has no {source}",
            "a label for every image, as for the first",
            "add it, or remove the image",
        )
    if source.key:
        return values[source.key]

    # captions that are numbers stay texts
    text = _read_member(tar, sample.files[source.member]).decode(errors="replace").strip()
    is_id = not columns.captions and is_number(text.removeprefix("-"))
    return int(text) if is_id else text


def _read_json(tar: tarfile.TarFile, sample: Sample) -> dict[str, Any]:
    member = sample.files["json"]
    try:
        values = parse_json(_read_member(tar, member), Any, nan=True)
    except WrongJson as error:
        file = f"{member.name} in {tar.name!r}"
        raise UserError(f"{file} is damaged ({error})", "a JSON object", "correct it") from None
    # lists and the like hold no label, and may be of no use here
    return values if isinstance(values, dict) else {}


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "only regular files are kept"
    return file.read()


# -- classes by names ------------------------------------------------------------------------------


def names_of_folders(images: Sequence[str], must_be_clear: bool) -> list[str]:
    """Return the folder of each image below the one that holds all; none if that is the only one.

    Args:
        images: paths in the tars, such as train/cat/1.jpg and train/dog/1.jpg.
        must_be_clear: refuse folders that may be no classes; else there are none.
    """
    folders = [posixpath.normpath("/" + posixpath.dirname(name)) for name in images]
    distinct = set(folders)
    if len(distinct) == 1:
        return []
    common = posixpath.commonpath(distinct)
    names = [folder[len(common) :].strip("/").split("/")[0] for folder in folders]
    are_splits = NO_CLASSES.issuperset(name.lower() for name in names)
    if not must_be_clear and (common in distinct or are_splits):
        return []
    if common in distinct:
        directly = images[folders.index(common)]
        below = next(image for image, name in zip(images, names, strict=True) if name)
        raise UserError(
            f"the tars have images without a folder ({directly}) and in folders ({below})",
            "one folder for each class, or labels such as .cls",
            "pack them again, or pass --num-classes 0 for no classes",
        )
    if are_splits:
        raise UserError(
            f"the tars have the folders {', '.join(sorted(set(names)))}",
            "one data set, with a folder for each class",
            "pack one of them, or pass --num-classes 0 for no classes",
        )
    return names


def class_of_tar(shard: Path) -> str:
    """Return the class of a tar that holds one class, such as cat of cat.tar or cat-000.tar."""
    return re.sub(r"[-_.]\d+$", "", shard.stem)


def tars_are_classes(shards: Sequence[Path]) -> bool:
    """Return whether the names of tars look like classes: n01440764.tar, or cat.tar and dog.tar.

    Names of splits or with numbers, such as train-000.tar, are those of shards.
    """
    stems = [shard.stem for shard in shards]
    wordnet = all(re.fullmatch(r"n\d{8}", stem) for stem in stems)  # ImageNet's
    numbered = any(stem[-1:].isdecimal() for stem in stems)
    splits = any(stem.lower() in NO_CLASSES for stem in stems)
    return len(set(stems)) == len(stems) > 1 and not splits and (wordnet or not numbered)
