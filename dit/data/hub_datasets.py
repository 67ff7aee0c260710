"""Data sets of Hugging Face's `datasets`: of the hub, saved to disk, or parquet files; at random or as a stream."""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dit.data.images import READ_ERRORS, ImageFiles
from dit.data.labels import Columns, Labels, Value
from dit.data.patterns import named_files
from dit.errors import UserError, did_you_mean
from dit.utils.image_size import Size

HUB = "hf:"
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "picture")
CLASS_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")
LOOKED_AT = 16  # images whose content tells two data sets of the same labels apart


class Table(NamedTuple):
    """A data set of two columns: an image's file, not decoded, and its label, if it has one."""

    name: str
    rows: Any  # datasets.Dataset or IterableDataset
    image: str
    label: str | None
    labels: Labels

    def value(self, row: dict[str, Any], where: str) -> Value:
        """Class or caption of a row; 0 where there are none."""
        return self.labels.check(row[self.label], where) if self.label else 0


class DatasetImages(ImageFiles):
    """The images of a data set that lies on this machine, memory-mapped.

    Raises:
        UserError: no such data set or split, no column of images or captions, or a row without class or caption; when
            an image is asked for: it can not be read.
    """

    def __init__(self, data: str, image_size: Size, columns: Columns):
        self.image_size, self.flips = image_size, not columns.captions
        self._table = table = open_table(data, columns, streaming=False)
        if not len(table.rows):
            raise UserError(f"{data} is empty", "rows with images", "choose another split")
        if table.label is None:
            self.classes, self.labels = [], np.zeros(len(table.rows), np.int64)
            return
        values = [
            table.labels.check(v, self.name(i)) for i, v in enumerate(table.rows[table.label])
        ]
        self.classes = table.labels.classes(values)
        self.labels = table.labels.number(values, self.classes)

    def name(self, index: int) -> str:
        """Where image `index` is stored, in words."""
        return f"row {index} of {self._table.name}"

    def open(self, index: int) -> BinaryIO:
        """The file of image `index`."""
        return open_image(self._table.rows[index][self._table.image])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over classes and a few of the images: the same wherever the data set lies."""
        digest = hashlib.sha256(repr((len(self), self.classes)).encode() + self.labels.tobytes())
        for index in np.linspace(0, len(self) - 1, LOOKED_AT).astype(int).tolist():
            digest.update(_content(partial(self.open, index)))
        return digest.hexdigest()


class Row(NamedTuple):
    """What opens an image's file, where that is in words, and its class or caption."""

    open: Callable[[], BinaryIO]
    name: str
    value: Value


class DatasetStream:
    """The images of a data set that is read from front to back, such as one of the hub that does not fit on the disk.

    Attributes:
        labels: what values of rows stand for; None where there are no classes.

    Raises:
        UserError: as `DatasetImages`.
    """

    def __init__(self, data: str, image_size: Size, columns: Columns):
        self.image_size, self.flips = image_size, not columns.captions
        self.table = open_table(data, columns, streaming=True)
        self.labels = self.table.labels if self.table.label else None

    def start(self, position: dict[str, Any] | None = None) -> "Reading":
        """Read on from a position, or from the first image."""
        return Reading(self.table, position)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the first images and classes."""
        digest = hashlib.sha256(repr(("stream", self.labels)).encode())
        for row, _ in zip(self.start(), range(LOOKED_AT), strict=False):
            digest.update(_content(row.open) + repr(row.value).encode())
        return digest.hexdigest()


class Reading:
    """Rows of a stream, one after the other.

    Raises:
        UserError: in the middle: the stream breaks off, or a row has no class or caption.
    """

    def __init__(self, table: Table, position: dict[str, Any] | None):
        self._table = table
        self._done = position["rows"] if position else 0
        if position:
            table.rows.load_state_dict(position["state"])
        self._rows = iter(table.rows)

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        where = f"row {self._done} of {self._table.name}"
        try:
            row = next(self._rows)
        except StopIteration:
            raise
        except Exception as error:  # of many kinds: disk, network, formats
            raise UserError(
                f"the stream broke off before {where} ({_short(error)})",
                "a stream that goes on",
                "run dit encode again: it continues where it was",
            ) from error
        self._done += 1
        return Row(
            partial(open_image, row[self._table.image]), where, self._table.value(row, where)
        )

    @property
    def position(self) -> dict[str, Any]:
        """Where the next row is, for JSON."""
        return {"rows": self._done, "state": self._table.rows.state_dict()}


def open_image(value: dict[str, Any] | None) -> BinaryIO:
    """The file that a cell of a column of images holds, or points to."""
    if value is None:
        raise ValueError("no image")
    if value["bytes"] is not None:
        return io.BytesIO(value["bytes"])
    import fsspec

    with fsspec.open(value["path"], "rb") as file:
        return io.BytesIO(file.read())


def _content(open_file: Callable[[], BinaryIO]) -> bytes:
    """What is in a file; nothing if it can not be opened, which is told when it is to be encoded."""
    try:
        return open_file().read()
    except READ_ERRORS:
        return b""


# -- opening -----------------------------------------------------------------------------------------------------


def open_table(data: str, columns: Columns, streaming: bool) -> Table:
    """Find a data set, its split and its columns.

    Args:
        data: a folder of `save_to_disk`, a folder or files of parquet, or `hf:NAME`, `hf:NAME:SPLIT` with such a
            folder's path, or the hub's OWNER/NAME or OWNER/NAME/CONFIG, as NAME.

    Raises:
        UserError: not to be had, or one of these is to be chosen.
    """
    from datasets import ClassLabel, Image

    name, split = _parse(data)
    rows = _choose_split(_load(name, data, streaming), data, name, split)
    features = rows.features if rows.features is not None else rows._resolve_features().features
    image = _choose(
        "--image-column",
        columns.image,
        IMAGE_COLUMNS,
        [n for n in features if _is_image(features[n])],
        features,
        data,
    )
    if image is None:
        raise UserError(
            f"{data} has no images, but {_list(features)}",
            "a column of images",
            "choose another data set",
        )
    label = _label_column(features, columns, data)
    kept = rows.select_columns([image, label] if label else [image]).cast_column(
        image, Image(decode=False)
    )
    named = label is not None and isinstance(features[label], ClassLabel)
    names = list(features[label].names) if named else None
    if names is not None and columns.captions:
        raise UserError(
            f"--captions with column {label} of {data}, which holds classes",
            "a column of texts",
            "choose another --label-column, or drop --captions",
        )
    return Table(data, kept, image, label, Labels(columns.captions, names))


def is_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, or holds parquet files, directly or in its subfolder `data`."""
    tables = (file for where in (folder, folder / "data") for file in where.glob("*.parquet"))
    return is_saved(folder) or any(
        file.name != "metadata.parquet" for file in tables
    )  # which speaks of image files


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _parse(data: str) -> tuple[str, str | None]:
    """Name and split."""
    name = data.removeprefix(HUB)
    head, _, tail = name.rpartition(":")
    return (
        (head, tail) if data.startswith(HUB) and head and not Path(name).exists() else (name, None)
    )


def _load(name: str, data: str, streaming: bool) -> Any:
    """A Dataset, an IterableDataset, or a dictionary of them by split."""
    import datasets

    path, files = Path(name).expanduser(), named_files(name)
    try:
        if is_saved(path):
            saved = datasets.load_from_disk(path)
            return _streamed(saved) if streaming else saved
        if files and files[0].suffix == ".parquet":
            return datasets.load_dataset(
                "parquet", data_files=[*map(str, files)], split="train", streaming=streaming
            )
        owner, *config = (
            [str(path)] if path.exists() else ["/".join(name.split("/")[:2]), *name.split("/")[2:]]
        )
        return datasets.load_dataset(owner, *config, streaming=streaming)
    except Exception as error:  # of many kinds
        raise UserError(
            f"--data {data} can not be opened as a data set ({_short(error)})",
            "a folder of save_to_disk or of parquet files, or the hub's OWNER/NAME[/CONFIG]",
            "check the name, or fill the hub's cache where there is a network and set HF_HOME to it",
        ) from error


def _streamed(saved: Any) -> Any:
    if isinstance(saved, dict):
        return {split: rows.to_iterable_dataset() for split, rows in saved.items()}
    return saved.to_iterable_dataset()


def _choose_split(loaded: Any, data: str, name: str, split: str | None) -> Any:
    """The split asked for; else the only one, or `train`."""
    if not isinstance(loaded, dict):
        if split:
            raise UserError(f"{data}, which has no splits", f"{HUB}{name}", f"drop :{split}")
        return loaded
    wanted = split or ("train" if len(loaded) > 1 else next(iter(loaded)))
    if wanted not in loaded:
        expected = f"one of its splits: {', '.join(loaded)}"
        do = (
            did_you_mean(wanted, loaded)
            if split
            else f"pass --data {HUB}{name}:{next(iter(loaded))}"
        )
        raise UserError(f"split {wanted} of {name}", expected, do)
    return loaded[wanted]


def _label_column(features: Any, columns: Columns, data: str) -> str | None:
    from datasets import ClassLabel

    flag = "--label-column"
    if (
        not columns.captions
    ):  # without columns of classes, one of numbers or names, but only by a usual name
        classes = [name for name in features if isinstance(features[name], ClassLabel)]
        fitting = classes or [name for name in CLASS_COLUMNS if name in features]
        return _choose(flag, columns.label, CLASS_COLUMNS, fitting, features, data)
    texts = [
        name
        for name in features
        if getattr(features[name], "dtype", None) in ("string", "large_string")
    ]
    label = _choose(flag, columns.label, CAPTION_COLUMNS, texts, features, data)
    if label is None:
        raise UserError(
            f"--captions and no column of texts in {data}, but {_list(features)}",
            "a column of texts",
            "drop --captions, or choose by --label-column",
        )
    return label


def _choose(
    flag: str,
    given: str | None,
    usual: Sequence[str],
    fitting: Sequence[str],
    features: Any,
    data: str,
) -> str | None:
    """The column given; else the only one that fits, or the first of the usual names; none where none fits."""
    if given is not None:
        if given not in features:
            raise UserError(
                f"{flag} {given}",
                f"one of the columns of {data}: {_list(features)}",
                did_you_mean(given, features),
            )
        return given
    if len(fitting) == 1:
        return fitting[0]
    chosen = next((name for name in usual if name in fitting), None)
    if fitting and chosen is None:
        raise UserError(
            f"{data} has several columns that would do: {', '.join(fitting)}",
            "one of them",
            f"choose by {flag}",
        )
    return chosen


def _is_image(feature: Any) -> bool:
    """A column of images, or of their bytes, as parquet files have it that `datasets` did not write."""
    from datasets import Image

    named = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    return (
        isinstance(feature, Image)
        or named
        or getattr(feature, "dtype", None) in ("binary", "large_binary")
    )


def _list(features: Any) -> str:
    kinds = {
        name: getattr(feature, "dtype", type(feature).__name__)
        for name, feature in features.items()
    }
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _short(error: Exception) -> str:
    return " ".join((str(error) or repr(error)).split())[:200]
