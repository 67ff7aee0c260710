"""What `--data` names: digits, a folder of images, tar shards, or a data set of Hugging Face."""

import difflib
from pathlib import Path

from dit.data.captions import DIGIT_CAPTIONS, CaptionedFolder
from dit.data.hub_datasets import HUB, DatasetImages, DatasetStream, is_dataset
from dit.data.images import Digits, ImageFolder, Images, is_image
from dit.data.labels import Columns
from dit.data.patterns import is_pattern, named_files
from dit.data.tars import TarImages, tars_in
from dit.errors import UserError, did_you_mean
from dit.utils.files import shell_quote
from dit.utils.image_size import Size

KINDS = (
    "`digits`, a folder of images, tar shards, or a data set of Hugging Face (a folder, or hf:NAME)"
)


def load_images(data: str, image_size: Size, columns: Columns | None = None) -> Images:
    """The images that `--data` names.

    Args:
        data: `digits`; a folder of images, flat (no classes) or with one subfolder per class; a folder or a pattern of
            .tar shards or .parquet files; a folder of `save_to_disk`; or `hf:NAME[:SPLIT]`.
        columns: what to take of each sample. Captions of digits are spelled out, those of a folder are in its
            metadata.jsonl.

    Raises:
        UserError: none of these; or as the classes of `dit.data` do.
    """
    columns = columns or Columns()
    _refuse_run(data)
    if _is_dataset(data):
        return DatasetImages(data, image_size, columns)
    if data != "digits" and (shards := find_tars(data)):
        return TarImages(shards, image_size, columns)
    _refuse_columns(data, columns)
    if data == "digits":
        digits = Digits(image_size)
        digits.classes = list(DIGIT_CAPTIONS) if columns.captions else digits.classes
        return digits
    path = Path(data).expanduser()
    if path.is_dir():
        return (CaptionedFolder if columns.captions else ImageFolder)(path, image_size)
    if is_pattern(data):
        raise UserError(
            f"--data {data} names no file",
            "a pattern of .tar or .parquet files that are there",
            "check the path, and put the pattern in quotes",
        )
    beside = (
        [str(path.with_name(p.name)) for p in path.parent.iterdir() if p.is_dir()]
        if path.parent.is_dir()
        else []
    )
    likely = difflib.get_close_matches(data, beside, n=3)
    raise UserError(
        f"--data {data} is neither `digits` nor a folder",
        KINDS,
        did_you_mean(data, [*likely, "digits"], "check the path"),
    )


def load_stream(data: str, image_size: Size, columns: Columns) -> DatasetStream:
    """A data set of Hugging Face that is read from front to back.

    Raises:
        UserError: other data, which need no streaming; or as `DatasetStream` does.
    """
    if _is_dataset(data):
        return DatasetStream(data, image_size, columns)
    raise UserError(
        f"--streaming with --data {data}",
        "a data set of Hugging Face, such as hf:OWNER/NAME:train",
        "drop --streaming: other data are read where they lie",
    )


def find_tars(data: str) -> list[Path]:
    """The tar shards that `--data` names: by a pattern, or a folder that has them and no images or subfolders."""
    path = Path(data).expanduser()
    if path.is_dir():
        beside = (
            is_image(file.name) or (file.is_dir() and not file.name.startswith("."))
            for file in path.iterdir()
        )
        return [] if next(path.glob("*.tar"), None) is None or any(beside) else tars_in(path)
    if path.is_file() and path.suffix != ".tar":
        do = (
            f"pass its folder, {path.parent}"
            if is_image(path.name)
            else "pass a folder, or a file .tar or .parquet"
        )
        raise UserError(f"--data {data} is a file", KINDS, do)
    files = named_files(data)
    if other := next((file for file in files if file.suffix != ".tar"), None):
        raise UserError(
            f"--data {data} stands for {other}", "files .tar or .parquet", "check the pattern"
        )
    return files


def is_packed(data: str) -> bool:
    """Whether `--data` names tar shards or a data set of Hugging Face, whose images are no files of their own."""
    if data == "digits":
        return False
    files = named_files(data)
    return _is_dataset(data) or (files[0].suffix == ".tar" if files else bool(find_tars(data)))


def _is_dataset(data: str) -> bool:
    if data == "digits":
        return False
    path = Path(data).expanduser()
    files = [] if path.is_dir() else named_files(data)
    return (
        data.startswith(HUB) or is_dataset(path) or (bool(files) and files[0].suffix == ".parquet")
    )


def _refuse_columns(data: str, columns: Columns) -> None:
    for flag, value in (("--image-column", columns.image), ("--label-column", columns.label)):
        if value is not None:
            raise UserError(
                f"{flag} {value} with --data {data}",
                "tar shards, or a data set of Hugging Face, with it",
                f"drop {flag}, or check the path",
            )


def _refuse_run(data: str) -> None:
    path = Path(data).expanduser()
    if data != "digits" and (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        raise UserError(
            f"--data {data} is a run, not images",
            KINDS,
            f"pass what it was trained on, which `dit info {shell_quote(data)}` tells",
        )


def data_exists(data: str) -> bool:
    """Whether a file or folder of that name is there; what needs none always is."""
    return (
        data == "digits"
        or data.startswith(HUB)
        or Path(data).expanduser().is_dir()
        or bool(named_files(data))
    )
