"""The images that `--data` names: digits, a folder, tars, a data set of the hub or one's own."""

import re
from dataclasses import replace
from pathlib import Path

from dit.data.captions import DIGIT_CAPTIONS, CaptionedFolder, ListedFolder, find_label_key
from dit.data.hub_datasets import HUB, DatasetImages, DatasetStream, holds_dataset
from dit.data.image_formats import is_image
from dit.data.images import Digits, ImageFolder, Images
from dit.data.label_files import refuse_unread_labels
from dit.data.labels import Columns
from dit.data.own import is_own, load_own
from dit.data.path_patterns import KINDS, expand_pattern, no_such_data, require_files
from dit.data.tar_labels import FOLDER, NO_CLASSES, TAR, tars_are_classes
from dit.data.tars import TarImages, list_tars, require_one_kind
from dit.errors import UserError
from dit.utils.files import printable, real_path, shell_quote
from dit.utils.image_size import Size

PACKED = re.compile(r"\.(zip|t?gz|bz2|t?xz|zst|7z|rar)$", re.IGNORECASE)
PICTURES = {*NO_CLASSES, "image", "imgs", "img", "pictures", "photos"}  # names of their folder


def load_images(data: str, image_size: Size, columns: Columns | None = None) -> Images:
    """Open the images that `--data` names.

    Args:
        data: `digits`; a folder of images, flat (no classes) or with one subfolder per class; a
            folder or a pattern of .tar shards or .parquet files; a folder of `save_to_disk`;
            `hf:NAME[:SPLIT]`; or MODULE:CLASS.
        columns: the parts of a sample to use. Digits have captions; those of a folder are in its
            metadata.jsonl.
    """
    columns = columns or Columns()
    _refuse_run(data)
    if is_own(data):
        refuse_columns(data, replace(columns, captions=False))
        return load_own(data, image_size, columns)
    if _is_hub_dataset(data):
        return DatasetImages(data, image_size, columns)
    if data != "digits" and (shards := find_tars(data)):
        return _load_tars(data, shards, image_size, columns)

    if data == "digits":
        refuse_columns(data, columns)
        digits = Digits(image_size)
        digits.classes = list(DIGIT_CAPTIONS) if columns.captions else digits.classes
        return digits
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise no_such_data(data)
    return _load_folder(data, folder, image_size, columns)


def _load_folder(data: str, folder: Path, image_size: Size, columns: Columns) -> ImageFolder:
    if columns.captions:
        refuse_columns(data, columns)
        return CaptionedFolder(folder, image_size)

    images = ImageFolder(folder, image_size)
    # labels in files count where no folders say the classes
    if not images.classes or PICTURES.issuperset(name.lower() for name in images.classes):
        key = None if columns.classes == "none" else find_label_key(folder, columns)
        if key is not None:
            refuse_columns(data, replace(columns, label=None))
            return ListedFolder(folder, image_size, key)
        if columns.classes == "ask":
            refuse_unread_labels(folder, images)
    refuse_columns(data, columns)
    return images


def _load_tars(data: str, shards: list[Path], image_size: Size, columns: Columns) -> TarImages:
    folder = Path(data).expanduser()
    # before reading: many shards take minutes
    are_chosen = columns.label in (FOLDER, TAR)
    if folder.is_dir() and not are_chosen and not tars_are_classes(shards):
        require_one_kind(folder, shards)
    images = TarImages(shards, image_size, columns)
    # cat.tar and dog.tar that have labels of their own are two data sets
    is_open = columns.classes != "none" and not are_chosen and not images.tar_is_class
    if folder.is_dir() and is_open:
        require_one_kind(folder, shards)
    return images


def load_stream(data: str, image_size: Size, columns: Columns) -> DatasetStream:
    """Open a data set of Hugging Face that is read from front to back."""
    if _is_hub_dataset(data):
        return DatasetStream(data, image_size, columns)
    raise UserError(
        f"--streaming with --data {data}",
        "a data set of Hugging Face, such as hf:OWNER/NAME:train",
        "drop --streaming: only such data sets are streamed",
    )


def find_tars(data: str) -> list[Path]:
    """Return the tar shards of a pattern, or of a folder that has no images or subfolders."""
    path = Path(data).expanduser()
    if path.is_dir():
        entries = (file for file in path.iterdir() if not file.name.startswith("."))
        # a folder of images may contain tars too
        has_images = any(is_image(file.name) or file.is_dir() for file in entries)
        return [] if has_images else list_tars(path)
    if path.is_file() and path.suffix != ".tar":
        do = "pass a folder, or a file .tar or .parquet"
        if PACKED.search(path.name):
            do = "unpack it, and pass the folder or the .tar"
        if is_image(path.name):
            do = f"pass its folder, {path.parent}"
        raise UserError(f"--data {data} is a file", KINDS, do)

    files = expand_pattern(data)
    other = next((file for file in files if file.suffix != ".tar"), None)
    if other:
        raise UserError(
            f"--data {data} names {other}", "files .tar or .parquet", "check the pattern"
        )
    require_files(data, files)
    return files


def is_packed(data: str) -> bool:
    """Return whether `--data` names tar shards, a data set of Hugging Face, or the user's own."""
    if data == "digits":
        return False
    if is_own(data) or _is_hub_dataset(data):
        return True
    files = expand_pattern(data)
    return files[0].suffix == ".tar" if files else bool(find_tars(data))


def locate(data: str) -> str:
    """Return `--data` with an absolute path, to compare it from any folder."""
    if data == "digits" or data.startswith(HUB) or is_own(data):
        return data
    return printable(str(real_path(data)))


def dataset_exists(data: str) -> bool:
    """Return whether `--data` still exists, so far as that is known without a network."""
    if data == "digits" or data.startswith(HUB) or is_own(data):
        return True
    return Path(data).expanduser().is_dir() or bool(expand_pattern(data))


def _is_hub_dataset(data: str) -> bool:
    if data == "digits":
        return False
    path = Path(data).expanduser()
    if data.startswith(HUB) or holds_dataset(path):
        return True
    # parquet files by pattern; those of a folder are in holds_dataset
    files = [] if path.is_dir() else expand_pattern(data)
    return bool(files) and files[0].suffix == ".parquet"


def refuse_columns(data: str, columns: Columns) -> None:
    """Refuse chosen columns with data that has none."""
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
            f"pass its training data, which `dit info {shell_quote(data)}` shows",
        )
