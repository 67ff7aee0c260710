"""Captioned images: a folder with a metadata.jsonl, Hugging Face's imagefolder layout.

Every distinct caption is a class.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dit.data.image_folder import find_images
from dit.data.image_formats import is_image
from dit.data.images import ImageFolder
from dit.data.labels import sort_captions, text_sha256
from dit.errors import UserError
from dit.utils.image_size import Size
from dit.utils.typed_json import WrongJson, parse_json

METADATA = "metadata.jsonl"
EXAMPLE = 'a JSON object {"file_name": …, "text": …}'
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_CAPTIONS = tuple(f"{'an' if name == 'eight' else 'a'} {name}" for name in DIGIT_NAMES)


class CaptionedFolder(ImageFolder):
    """The images that `root/metadata.jsonl` lists, in its order; other images are ignored.

    Each line is `{"file_name": "a/1.png", "text": "a red square"}`, with a file in the folder or
    below it. Classes are the distinct captions in the order of their SHA-256.
    """

    flips = False  # a caption may mention left and right

    def __init__(self, root: str | Path, image_size: Size):
        self.root = Path(root)
        self.image_size = image_size

        entries = _read_metadata(self.root / METADATA)
        self._files = [name for name, _ in entries]
        self._folders: list[str] = []
        self.notes = _note_others(self.root, self._files)
        self.classes = sort_captions(text for _, text in entries)
        ids = {text: i for i, text in enumerate(self.classes)}
        self.labels = np.array([ids[text] for _, text in entries], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over files and captions, in order."""
        pairs = zip(self._files, self.labels, strict=True)
        return text_sha256(json.dumps([[name, self.classes[label]] for name, label in pairs]))


def _note_others(root: Path, listed: list[str]) -> list[str]:
    others = sorted(set(find_images(root)) - {Path(name).as_posix() for name in listed})
    if not others:
        return []
    noun = "image" if len(others) == 1 else "images"
    return [f"{len(others):,} {noun} left out: not in {root / METADATA} (the first is {others[0]})"]


def _read_metadata(file: Path) -> list[tuple[str, str]]:
    """Return file name and caption of every image."""
    if not file.is_file():
        raise UserError(
            f"no {METADATA} in {file.parent}",
            'a line {"file_name": …, "text": …} for each image',
            "write one, or drop --conditioning text (--captions of dit encode)",
        )
    # bytes: json decodes them as UTF-8, whatever the locale is
    with file.open("rb") as opened:
        lines = enumerate(opened, start=1)
        entries = [_parse_line(file, number, line) for number, line in lines if line.strip()]
    if not entries:
        raise UserError(f"{file} is empty", "a line for each image", "write its captions")
    return entries


def _parse_line(file: Path, number: int, line: bytes) -> tuple[str, str]:
    """Return file name and caption of one line; refuse an image that is missing or outside."""

    def invalid(given: str, expected: str) -> UserError:
        return UserError(f"{file}, line {number}: {given}", expected, "correct the line")

    try:
        values = parse_json(line.strip(), dict[str, Any])
    except WrongJson as error:
        raise invalid(str(error), EXAMPLE) from None
    missing = [key for key in ("file_name", "text") if key not in values]
    if missing:
        present = ", ".join(values) or "nothing"
        raise invalid(f"no {' and no '.join(missing)}, but {present}", EXAMPLE)

    name, text = values["file_name"], values["text"]
    inside = f"an image in {file.parent} or below it"
    if isinstance(name, str) and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise invalid(f"image {name!r}", inside)
    valid = isinstance(name, str) and is_image(Path(name).name) and (file.parent / name).is_file()
    if not valid:
        raise invalid(f"no image {name!r}", inside)
    if not isinstance(text, str) or not text.strip():
        raise invalid(f"caption {text!r} of {name}", "a text that is not empty")
    return name, text.strip()
