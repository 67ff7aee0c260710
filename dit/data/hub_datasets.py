"""Data sets of Hugging Face's `datasets`: of the hub, saved to disk, or parquet files.

`DatasetImages` has random access; `DatasetStream` reads from front to back.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from torch import Tensor

from dit.data.image_files import OpenFile, read_pixels
from dit.data.images import ImageFiles, file_mark
from dit.data.labels import Columns, Label, Labels, ask_for_labels
from dit.data.path_patterns import expand_pattern, require_files
from dit.errors import UserError, did_you_mean
from dit.utils.image_size import Size

HUB = "hf:"
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "picture")
CLASS_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")
TEXTS = ("string", "large_string")  # types of columns
FINGERPRINT_IMAGES = 16  # images whose content distinguishes data sets of the same labels


class Table(NamedTuple):
    """A data set of two columns: image files, not decoded, and labels, if there are any."""

    name: str
    rows: Any  # datasets.Dataset or IterableDataset
    image: str
    label: str | None
    labels: Labels
    notes: list[str]  # where the classes come from, for the user


class DatasetImages(ImageFiles):
    """The images of a data set on this machine, memory-mapped."""

    def __init__(self, data: str, image_size: Size, columns: Columns):
        self.image_size = image_size
        self.flips = not columns.captions
        self._table = table = open_table(data, columns, streaming=False)
        self.notes = table.notes
        if not len(table.rows):
            raise UserError(f"{data} is empty", "rows with images", "choose another split")

        self.classes: list[str] = []
        self.labels = np.zeros(len(table.rows), np.int64)
        if table.label is not None:
            column = enumerate(table.rows[table.label])
            values = [table.labels.check(value, self.name(i)) for i, value in column]
            self.classes = table.labels.classes(values)
            self.labels = table.labels.to_ids(values, self.classes)

    def name(self, index: int) -> str:
        return f"row {index} of {self._table.name}"

    def open(self, index: int) -> BinaryIO:
        return open_cell(self._table.rows[index][self._table.image])

    def mark(self, index: int) -> str:
        return f"{self._tables_mark} {index}"

    @cached_property
    def _tables_mark(self) -> str:
        """Sizes and times of the files that hold the rows."""
        files = [Path(table["filename"]) for table in self._table.rows.cache_files]
        return " ".join(map(file_mark, files))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over classes and a few of the images: independent of the data set's path."""
        about = repr((len(self), self.classes))
        digest = hashlib.sha256(about.encode() + self.labels.tobytes())
        # a sample: reading all images would take as long as encoding them
        spread = np.linspace(0, len(self) - 1, FINGERPRINT_IMAGES)
        for index in spread.astype(int).tolist():
            digest.update(_read_if_possible(partial(self.open, index)))
        return digest.hexdigest()


# -- streams ---------------------------------------------------------------------------------------


class Row(NamedTuple):
    """An image file, where it is stored, and its label (0 where there are none)."""

    open: OpenFile
    name: str
    value: Label

    def pixels(self, size: Size) -> Tensor:
        """Read the image and crop it: uint8 [3, H, W]."""
        return read_pixels(self.open, self.name, size)


class DatasetStream:
    """The images of a data set that is read in order, such as one of the hub larger than the disk.

    Attributes:
        labels: the meaning of the rows' labels; None where there are no classes.
    """

    def __init__(self, data: str, image_size: Size, columns: Columns):
        self.image_size = image_size
        self.flips = not columns.captions
        self.table = open_table(data, columns, streaming=True)
        self.notes = self.table.notes
        self.labels = self.table.labels if self.table.label else None

    def start(self, position: dict[str, Any] | None = None) -> "StreamReader":
        """Read from a position of an earlier reader, or from the first image."""
        return StreamReader(self.table, position)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the first images and classes."""
        digest = hashlib.sha256(repr(("stream", self.labels)).encode())
        for row, _ in zip(self.start(), range(FINGERPRINT_IMAGES), strict=False):
            digest.update(_read_if_possible(row.open) + repr(row.value).encode())
        return digest.hexdigest()


class StreamReader:
    """An iterator over the rows of a stream that knows its position."""

    def __init__(self, table: Table, position: dict[str, Any] | None):
        self._table = table
        self._done = position["rows"] if position else 0
        if position:
            table.rows.load_state_dict(position["state"])
        self._rows = iter(table.rows)

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        table = self._table
        where = f"row {self._done} of {table.name}"
        try:
            row = next(self._rows)
        except StopIteration:
            raise
        except Exception as error:  # of many kinds: disk, network, formats
            raise UserError(
                f"the stream broke off before {where} ({_one_line(error)})",
                "a stream without errors",
                "run dit encode again: it continues where it was",
            ) from error
        self._done += 1
        label = table.labels.check(row[table.label], where) if table.label else 0
        return Row(partial(open_cell, row[table.image]), where, label)

    @property
    def position(self) -> dict[str, Any]:
        """The position of the next row, for JSON."""
        return {"rows": self._done, "state": self._table.rows.state_dict()}


def open_cell(cell: dict[str, Any] | None) -> BinaryIO:
    """Open the image file whose bytes or path a cell holds."""
    if cell is None:
        raise ValueError("no image")
    if cell["bytes"] is not None:
        return io.BytesIO(cell["bytes"])
    import fsspec

    with fsspec.open(cell["path"], "rb") as file:
        return io.BytesIO(file.read())


def _read_if_possible(open_file: OpenFile) -> bytes:
    # a fingerprint needs no error for a missing file: reading its pixels will raise it
    try:
        return open_file().read()
    except (OSError, ValueError):
        return b""


# -- opening ---------------------------------------------------------------------------------------


def open_table(data: str, columns: Columns, streaming: bool) -> Table:
    """Open a data set and choose its split and its columns.

    Args:
        data: a folder of `save_to_disk`, a folder or files of parquet, or `hf:NAME`,
            `hf:NAME:SPLIT` with such a folder's path, or the hub's OWNER/NAME or
            OWNER/NAME/CONFIG, as NAME.
    """
    from datasets import ClassLabel, Image

    name, split = _split_name(data)
    rows = _choose_split(_load(name, data, streaming), data, name, split)
    # a stream may know its columns only after its first rows
    features = rows.features if rows.features is not None else rows._resolve_features().features

    images = [name for name in features if _is_image(features[name])]
    image = _choose("--image-column", columns.image, IMAGE_COLUMNS, images, features, data)
    if image is None:
        raise UserError(
            f"{data} has no images, but {_list_columns(features)}",
            "a column of images",
            "choose another data set",
        )
    label, others = _label_column(features, columns, data)
    notes = []
    if label is not None:
        instead = f", not {', '.join(others)}" if others else ""
        kind = "captions" if columns.captions else "classes"
        notes = [f"{kind} from column {label}{instead}"]
    names = None
    if label is not None and isinstance(features[label], ClassLabel):
        names = list(features[label].names)
        if columns.captions:
            raise UserError(
                f"--captions with column {label} of {data}, which holds classes",
                "a column of texts",
                "choose another --label-column, or drop --captions",
            )
    rows = rows.select_columns([image, label] if label else [image])
    # files, not pixels: all images are decoded by read_image
    rows = rows.cast_column(image, Image(decode=False))
    return Table(data, rows, image, label, Labels(columns.captions, names), notes)


def holds_dataset(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`, or it or `data` in it has parquet."""
    if is_saved(folder):
        return True
    tables = (*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet"))
    # metadata.parquet describes image files beside it
    return any(file.name != "metadata.parquet" for file in tables)


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _split_name(data: str) -> tuple[str, str | None]:
    """Return the name and the split of `hf:NAME:SPLIT`."""
    name = data.removeprefix(HUB)
    head, _, tail = name.rpartition(":")
    # a path may contain colons
    has_split = data.startswith(HUB) and head and not Path(name).exists()
    return (head, tail) if has_split else (name, None)


def _load(name: str, data: str, streaming: bool) -> Any:
    """Return a Dataset, an IterableDataset, or a dictionary of them by split."""
    import datasets

    path = Path(name).expanduser()
    files = expand_pattern(name)
    require_files(data, files)
    try:
        if is_saved(path):
            saved = datasets.load_from_disk(path)
            return _to_stream(saved) if streaming else saved
        if files and files[0].suffix == ".parquet":
            return datasets.load_dataset(
                "parquet", data_files=[*map(str, files)], split="train", streaming=streaming
            )
        if path.exists():
            return datasets.load_dataset(str(path), streaming=streaming)
        parts = name.split("/")
        return datasets.load_dataset("/".join(parts[:2]), *parts[2:], streaming=streaming)
    except Exception as error:  # of many kinds
        raise UserError(
            f"--data {data} cannot be opened as a data set ({_one_line(error)})",
            "a folder of save_to_disk or of parquet files, or the hub's OWNER/NAME[/CONFIG]",
            "check the name, or fill the hub's cache on a connected machine and set HF_HOME to it",
        ) from error


def _to_stream(saved: Any) -> Any:
    if isinstance(saved, dict):
        return {split: rows.to_iterable_dataset() for split, rows in saved.items()}
    return saved.to_iterable_dataset()


def _choose_split(loaded: Any, data: str, name: str, split: str | None) -> Any:
    """Return the given split; else the only one, or `train`."""
    if not isinstance(loaded, dict):
        if split:
            raise UserError(f"{data}, which has no splits", f"{HUB}{name}", f"drop :{split}")
        return loaded
    wanted = split or ("train" if len(loaded) > 1 else next(iter(loaded)))
    if wanted in loaded:
        return loaded[wanted]
    do = f"pass --data {HUB}{name}:{next(iter(loaded))}"
    if split:
        do = did_you_mean(wanted, loaded)
    raise UserError(f"split {wanted} of {name}", f"one of its splits: {', '.join(loaded)}", do)


# -- columns ---------------------------------------------------------------------------------------


def _label_column(features: Any, columns: Columns, data: str) -> tuple[str | None, list[str]]:
    """Return the column of captions or of classes, if there is one, and others that fit too."""
    from datasets import ClassLabel

    if columns.classes == "none":
        return None, []
    flag = "--label-column"
    usual: Sequence[str] = CAPTION_COLUMNS
    if columns.captions:
        fitting = [name for name in features if _dtype(features[name]) in TEXTS]
    else:
        usual = CLASS_COLUMNS
        fitting = [name for name in features if isinstance(features[name], ClassLabel)]
        # a column of plain numbers or names counts only if it has a usual name
        fitting = fitting or [name for name in CLASS_COLUMNS if name in features]

    label = _choose(flag, columns.label, usual, fitting, features, data)
    if label is None and columns.captions:
        raise UserError(
            f"--captions and no column of texts in {data}, but {_list_columns(features)}",
            "a column of texts",
            "drop --captions, or choose by --label-column",
        )
    if label is None and columns.classes == "ask":
        _ask_for_label_column(features, data)
    return label, [name for name in fitting if name != label]


def _ask_for_label_column(features: Any, data: str) -> None:
    """Refuse a data set with other columns than images: one of them may hold the classes."""
    names = [name for name in features if not _is_image(features[name])]
    if names:
        # whole numbers are classes more often than texts are
        names.sort(key=lambda name: "int" not in str(_dtype(features[name])))
        has_texts = any(_dtype(features[name]) in TEXTS for name in names)
        given = f"{data} has no column {CLASS_COLUMNS[0]} or {CLASS_COLUMNS[2]}"
        raise ask_for_labels(given, names, has_texts)


def _choose(
    flag: str,
    given: str | None,
    usual: Sequence[str],
    fitting: Sequence[str],
    features: Any,
    data: str,
) -> str | None:
    """Return the given column; else the only one that fits, or that of the first usual name."""
    if given is not None:
        if given not in features:
            raise UserError(
                f"{flag} {given}",
                f"one of the columns of {data}: {_list_columns(features)}",
                did_you_mean(given, features),
            )
        return given
    if len(fitting) == 1:
        return fitting[0]
    chosen = next((name for name in usual if name in fitting), None)
    if fitting and chosen is None:
        raise UserError(
            f"{data} has several columns that fit: {', '.join(fitting)}",
            "one of them",
            f"choose by {flag}",
        )
    return chosen


def _is_image(feature: Any) -> bool:
    """Return whether a column holds images, or their bytes, as other programs write parquet."""
    from datasets import Image

    if isinstance(feature, dict):
        return feature.keys() == {"bytes", "path"}
    return isinstance(feature, Image) or _dtype(feature) in ("binary", "large_binary")


def _dtype(feature: Any) -> str | None:
    return getattr(feature, "dtype", None)


def _list_columns(features: Any) -> str:
    return ", ".join(
        f"{name} ({getattr(feature, 'dtype', type(feature).__name__)})"
        for name, feature in features.items()
    )


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or repr(error)).split())[:200]
