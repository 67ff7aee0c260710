"""Images and their classes: scikit-learn's digits, image files, and folders of them."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dit.data.image_files import find_damage, read_pixels, reading_threads
from dit.data.image_folder import list_images
from dit.data.labels import sort_names
from dit.errors import UserError
from dit.utils.files import name_to_bytes, printable
from dit.utils.image_size import Size, sides, size_flag

MARKS_AT_ONCE = 200  # images
DIGIT_SIDE, DIGIT_MAX = 8, 16  # scikit-learn's digits are 8x8 with values 0..16


class Images(Protocol):
    """Images of one size with their classes."""

    image_size: Size
    labels: np.ndarray  # [N] int64; all 0 where there are no classes
    classes: list[str]
    flips: bool  # whether a mirrored image still belongs to its class
    notes: Sequence[str]  # what the user should know of, such as files left out

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...  # [3, H, W] uint8

    @property
    def fingerprint(self) -> str: ...  # the same for images of the same names in the same order

    def stamp(self, indices: Sequence[int]) -> str: ...  # other if one of these images was replaced


# -- digits ----------------------------------------------------------------------------------------


class Digits:
    """The 1,797 handwritten digits of scikit-learn, 8x8, enlarged to `image_size`.

    The enlargement is smooth and lossless: averaging areas of the 8x8 grid gives the digit back.

    Attributes:
        images: [1797, 3, H, W] uint8; the three channels share their memory.
        labels: [1797] int64.
    """

    flips = False  # a mirrored 2 is not a digit
    notes: Sequence[str] = ()

    def __init__(self, image_size: Size):
        from sklearn.datasets import load_digits

        if min(sides(image_size)) < DIGIT_SIDE:
            raise UserError(
                f"{size_flag(image_size)} with digits",
                f"at least {DIGIT_SIDE} pixels a side",
                "change --image-size",
            )
        data = load_digits()
        self.image_size = image_size
        self.labels = data.target.astype(np.int64)
        self.classes = [str(name) for name in data.target_names]

        digits = torch.from_numpy(data.images).float()[:, None]  # [N, 1, 8, 8]
        gray = torch.cat([_enlarge(part, sides(image_size)) for part in digits.split(256)])
        self.images = gray.expand(-1, 3, -1, -1)  # [N, 3, H, W]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    @property
    def fingerprint(self) -> str:
        """The data set's name: its content never changes."""
        return "digits"

    def stamp(self, indices: Sequence[int]) -> str:
        """Return the data set's name."""
        return self.fingerprint


def _enlarge(digits: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge [B, 1, 8, 8] in 0..16 to [B, 1, H, W] uint8 with the same area averages."""

    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x, size, mode="bicubic", align_corners=False).clamp(0, DIGIT_MAX)

    # fixed-point iteration: the clamp has no closed inverse
    source = digits
    for _ in range(8):
        source = source + digits - F.adaptive_avg_pool2d(enlarge(source), DIGIT_SIDE)
    return (enlarge(source) * (255 / DIGIT_MAX)).round().to(torch.uint8)


def to_digits(images: Tensor) -> Tensor:
    """Return scikit-learn's features of digits: uint8 [B, 3, H, W] -> float32 [B, 64] in 0..16."""
    gray = images.float().mean(dim=1, keepdim=True) * (DIGIT_MAX / 255)
    return F.adaptive_avg_pool2d(gray, DIGIT_SIDE).flatten(1)


# -- image files -----------------------------------------------------------------------------------


class ImageFiles:
    """Images in files, read on access and cropped to one size.

    A subclass says which files: `name`, `open` and `mark`.
    """

    image_size: Size
    labels: np.ndarray  # [N] int64; all 0 where there are no classes
    classes: list[str]
    flips = True
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        return read_pixels(partial(self.open, index), self.name(index), self.image_size)

    def name(self, index: int) -> str:
        """Return where image `index` is stored, for messages."""
        raise NotImplementedError

    def open(self, index: int) -> BinaryIO:
        """Open the file of image `index`."""
        raise NotImplementedError

    def mark(self, index: int) -> str:
        """Return what differs once image `index` is replaced, without reading it."""
        raise NotImplementedError

    def damage(self, index: int) -> str:
        """Return why image `index` cannot be read, or "" if it is intact."""
        return find_damage(partial(self.open, index))

    def stamp(self, indices: Sequence[int]) -> str:
        """Return the SHA-256 over the marks of these images: names, sizes and times of files."""

        def marks(part: Sequence[int]) -> bytes:
            # a name need not be UTF-8
            return name_to_bytes("".join(f"{self.mark(index)}\n" for index in part))

        starts = range(0, len(indices), MARKS_AT_ONCE)
        parts = [indices[start : start + MARKS_AT_ONCE] for start in starts]
        digest = hashlib.sha256()
        # in threads, as a network disk answers each question late; a few at a time, as each
        # task costs more than a question to a local disk
        with reading_threads() as pool:
            for part in pool.map(marks, parts):
                digest.update(part)
        return digest.hexdigest()

    @cached_property
    def first_stamp(self) -> str:
        """The stamp of all images when this was first asked for, as before they are checked."""
        return self.stamp(range(len(self)))


def file_mark(file: str | Path) -> str:
    """Return size and time of a file, one of which changes when it is replaced."""
    try:
        status = os.stat(file)
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


class ImageFolder(ImageFiles):
    """Images in `root/CLASS`, or below it, sorted; or in `root` itself, without classes."""

    def __init__(self, root: str | Path, image_size: Size):
        self.root = Path(root)
        self.image_size = image_size
        listing = list_images(self.root)
        self.classes = sort_names(listing.classes)
        self.notes = listing.notes

        # images follow the folders' text order, ids the classes': latents of earlier versions,
        # whose classes 0 … 11 had the ids 0, 1, 10, …, continue with the same images
        ids = {name: i for i, name in enumerate(self.classes)}
        folder_ids = np.array([ids[name] for name in listing.classes] or [0], np.int64)
        self.labels = np.repeat(folder_ids, [len(names) for names in listing.files])
        self._files = [name for names in listing.files for name in names]  # within the class
        # a name of a folder need not be UTF-8; that of a class is text
        self._folders, self.classes = self.classes, [printable(name) for name in self.classes]

    @property
    def files(self) -> list[str]:
        """The name of each image within the folder of its class, in order."""
        return self._files

    def path(self, index: int) -> Path:
        """Return the file of image `index`."""
        return self.root / self._folder(index) / self._files[index]

    def _folder(self, index: int) -> str:
        return self._folders[self.labels[index]] if self._folders else ""

    def name(self, index: int) -> str:
        return str(self.path(index))

    def open(self, index: int) -> BinaryIO:
        return self.path(index).open("rb")

    def mark(self, index: int) -> str:
        # relative, so that the folder may move
        name = os.path.join(self._folder(index), self._files[index])
        return f"{name} {file_mark(os.path.join(self.root, name))}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names of classes and files, in order."""
        # names only: reading all contents would take as long as encoding them
        digest = hashlib.sha256()
        for index, name in enumerate(self._files):
            digest.update(name_to_bytes(f"{self._folder(index)}/{name}\n"))
        return digest.hexdigest()
