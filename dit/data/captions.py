"""Captioned images: a folder with a metadata.jsonl, Hugging Face's imagefolder layout.

Every distinct caption is a class.
"""

import json
from functools import cached_property
from pathlib import Path

import numpy as np

from dit.data.images import ImageFolder, is_image
from dit.data.labels import by_hash, sha256
from dit.errors import UserError
from dit.utils.image_size import Size

METADATA = "metadata.jsonl"
EXAMPLE = 'a JSON object {"file_name": …, "text": …}'
DIGIT_CAPTIONS = (
    "a zero",
    "a one",
    "a two",
    "a three",
    "a four",
    "a five",
    "a six",
    "a seven",
    "an eight",
    "a nine",
)


class CaptionedFolder(ImageFolder):
    """The images that `root/metadata.jsonl` lists, in its order; those that it does not list are left out.

    Each line is `{"file_name": "a/1.png", "text": "a red square"}`, the file in the folder or below it. Classes are the
    distinct captions in the order of their SHA-256, so that the first of them are a fair sample of all.

    Raises:
        UserError: no metadata.jsonl, an empty one, or a line of it that is no JSON, without caption or whose image is
            missing; when an image is asked for: the file can not be read.
    """

    flips = False  # a caption may tell left from right

    def __init__(self, root: str | Path, image_size: Size):
        self.root = Path(root)
        self.image_size = image_size
        entries = _read(self.root / METADATA)
        self._files = [name for name, _ in entries]
        self.classes = by_hash(text for _, text in entries)
        ids = {text: i for i, text in enumerate(self.classes)}
        self.labels = np.array([ids[text] for _, text in entries], dtype=np.int64)

    def path(self, index: int) -> Path:
        """Where image `index` is stored."""
        return self.root / self._files[index]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over files and captions, in order."""
        lines = [
            [name, self.classes[label]]
            for label, name in zip(self.labels, self._files, strict=True)
        ]
        return sha256(json.dumps(lines))


def _read(file: Path) -> list[tuple[str, str]]:
    """Name and caption of every image."""
    if not file.is_file():
        raise UserError(
            f"no {METADATA} in {file.parent}",
            'a line {"file_name": …, "text": …} for each image',
            "write one, or drop --conditioning text (--captions of dit encode)",
        )
    with file.open("rb") as lines:  # in UTF-8, of which json makes sure
        entries = [
            _entry(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()
        ]
    if not entries:
        raise UserError(f"{file} is empty", "a line for each image", "write its captions")
    return entries


def _entry(file: Path, number: int, line: bytes) -> tuple[str, str]:
    """Name and caption of one line, after making sure that the image is there."""

    def wrong(what: str, expected: str, do: str = "mend the line") -> UserError:
        return UserError(f"{file}, line {number}: {what}", expected, do)

    try:
        values = json.loads(line.strip())
    except ValueError as error:
        raise wrong(f"no JSON ({getattr(error, 'msg', 'not UTF-8')})", EXAMPLE) from None
    if not isinstance(values, dict):
        raise wrong(f"{line.decode().strip()[:80]} is no JSON object", EXAMPLE)
    if missing := [key for key in ("file_name", "text") if key not in values]:
        raise wrong(f"no {' and no '.join(missing)}, but {', '.join(values) or 'nothing'}", EXAMPLE)
    name, text = values["file_name"], values["text"]
    if isinstance(name, str) and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise wrong(
            f"image {name!r}", f"an image in {file.parent} or below it", "move the image there"
        )
    if (
        not isinstance(name, str)
        or not is_image(Path(name).name)
        or not (file.parent / name).is_file()
    ):
        raise wrong(
            f"no image {name!r}",
            f"an image in {file.parent} or below it",
            "mend the line, or add the image",
        )
    if not isinstance(text, str) or not text.strip():
        raise wrong(f"caption {text!r} of {name}", "a text that is not empty")
    return name, text.strip()
