"""Images with captions or labels: a folder with metadata.jsonl, Hugging Face's imagefolder layout.

Every distinct caption is a class.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from dit.data.image_folder import find_images
from dit.data.image_formats import is_image
from dit.data.images import ImageFolder
from dit.data.labels import Columns, Label, Labels, ask_for_labels, text_sha256
from dit.data.tar_labels import KEYS
from dit.errors import UserError
from dit.utils.image_size import Size
from dit.utils.typed_json import WrongJson, parse_json

METADATA = "metadata.jsonl"
NAME, TEXT = "file_name", "text"  # keys of its lines
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_CAPTIONS = tuple(f"{'an' if name == 'eight' else 'a'} {name}" for name in DIGIT_NAMES)


class ListedFolder(ImageFolder):
    """The images that `root/metadata.jsonl` lists, in its order; other images are ignored.

    Each line is `{"file_name": "a/1.png", "label": "cat"}`, with a file in the folder or below it.

    Args:
        key: of the class, or of the caption.
    """

    def __init__(self, root: str | Path, image_size: Size, key: str, captions: bool = False):
        self.root = Path(root)
        self.image_size = image_size
        self.flips = not captions  # a caption may mention left and right

        file = self.root / METADATA
        entries = _read_metadata(file, key, Labels(captions))
        self._files = [name for name, _ in entries]
        self._folders: list[str] = []
        self.notes = _note_others(self.root, self._files)
        if not captions:
            self.notes = [f"classes from {key} in {file}", *self.notes]
        self.classes = Labels(captions).classes(label for _, label in entries)
        self.labels = Labels(captions).to_ids((label for _, label in entries), self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over files and classes, in order."""
        pairs = zip(self._files, self.labels, strict=True)
        return text_sha256(json.dumps([[name, self.classes[label]] for name, label in pairs]))


class CaptionedFolder(ListedFolder):
    """The images that `root/metadata.jsonl` lists, with `text` as their captions.

    Classes are the distinct captions in the order of their SHA-256.
    """

    def __init__(self, root: str | Path, image_size: Size):
        super().__init__(root, image_size, TEXT, captions=True)


def find_label_key(folder: Path, columns: Columns) -> str | None:
    """Return the key in `folder/metadata.jsonl` that holds the classes; None without such a file.

    Raises:
        UserError: no key of a usual name, but others that may be labels.
    """
    file = folder / METADATA
    keys = _first_keys(file) if file.is_file() else []
    if NAME not in keys:
        return None
    keys.remove(NAME)
    wanted = KEYS[False] if columns.label is None else (columns.label,)
    found = next((key for key in wanted if key in keys), None)
    if found is None and keys and (columns.label or columns.classes == "ask"):
        raise ask_for_labels(f"{file} has no {wanted[0]}", keys, TEXT in keys)
    return found


def _first_keys(file: Path) -> list[str]:
    with file.open("rb") as opened:
        line = next((line for line in opened if line.strip()), b"")
    try:
        return [*parse_json(line.strip(), dict[str, Any])]
    except WrongJson:
        return []


def _note_others(root: Path, listed: list[str]) -> list[str]:
    others = sorted(set(find_images(root)) - {Path(name).as_posix() for name in listed})
    if not others:
        return []
    noun = "image" if len(others) == 1 else "images"
    return [f"{len(others):,} {noun} left out: not in {root / METADATA} (the first is {others[0]})"]


def _read_metadata(file: Path, key: str, labels: Labels) -> list[tuple[str, Label]]:
    """Return file name and label of every image."""
    if not file.is_file():
        raise UserError(
            f"no {METADATA} in {file.parent}",
            'a line {"file_name": …, "text": …} for each image',
            "write one, or drop --conditioning text (--captions of dit encode)",
        )
    # bytes: json decodes them as UTF-8, whatever the locale is
    with file.open("rb") as opened:
        lines = [(n, line) for n, line in enumerate(opened, start=1) if line.strip()]
    if not lines:
        raise UserError(f"{file} is empty", "a line for each image", "write its captions")
    return [_parse_line(file, number, line, key, labels) for number, line in lines]


def _parse_line(
    file: Path, number: int, line: bytes, key: str, labels: Labels
) -> tuple[str, Label]:
    """Return file name and label of one line; refuse an image that is missing or outside."""
    example = f'a JSON object {{"{NAME}": …, "{key}": …}}'

    def invalid(given: str, expected: str) -> UserError:
        return UserError(f"{file}, line {number}: {given}", expected, "correct the line")

    try:
        values = parse_json(line.strip(), dict[str, Any])
    except WrongJson as error:
        raise invalid(str(error), example) from None
    missing = [name for name in (NAME, key) if name not in values]
    if missing:
        present = ", ".join(values) or "nothing"
        raise invalid(f"no {' and no '.join(missing)}, but {present}", example)

    name, label = values[NAME], values[key]
    inside = f"an image in {file.parent} or below it"
    if isinstance(name, str) and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise invalid(f"image {name!r}", inside)
    valid = isinstance(name, str) and is_image(Path(name).name) and (file.parent / name).is_file()
    if not valid:
        raise invalid(f"no image {name!r}", inside)
    if labels.captions and (not isinstance(label, str) or not label.strip()):
        raise invalid(f"caption {label!r} of {name}", "a text that is not empty")
    return name, labels.check(label, f"{name} ({file}, line {number})")
