"""Images and their classes: the digits that ship with scikit-learn, and image files, such as those of a folder."""

import hashlib
import os
import struct
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from dit.errors import UserError
from dit.utils.image_size import Size, sides, size_flag

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)  # of Pillow
DIGIT_SIDE, DIGIT_MAX = 8, 16  # scikit-learn's digits are 8x8 with values 0..16


class Images(Protocol):
    """Images of one size with their classes."""

    image_size: Size
    labels: np.ndarray  # [N] int64; all 0 where there are no classes
    classes: list[str]
    flips: bool  # whether a mirrored image is still one of its class

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...  # [3, H, W] uint8

    @property
    def fingerprint(self) -> str: ...  # the same for the same images in the same order


class Digits:
    """The 1,797 handwritten digits of scikit-learn, 8x8, enlarged to `image_size`.

    The enlargement is bicubic, corrected so that averaging the areas of the 8x8 grid gives the digit back (see
    `to_digits`): smooth pictures that lose nothing of the originals.

    Attributes:
        images: [1797, 3, H, W] uint8; the three channels share their memory.
        labels: [1797] int64.
    """

    flips = False  # a mirrored 2 is no digit

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


def _enlarge(digits: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 1, 8, 8] in 0..16 -> [B, 1, H, W] uint8, whose area averages are the digits again."""

    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x, size, mode="bicubic", align_corners=False).clamp(0, DIGIT_MAX)

    source = digits
    for _ in range(8):  # fixed-point iteration, for the clamp has no closed inverse
        source = source + digits - F.adaptive_avg_pool2d(enlarge(source), DIGIT_SIDE)
    return (enlarge(source) * (255 / DIGIT_MAX)).round().to(torch.uint8)


def to_digits(images: Tensor) -> Tensor:
    """Images of digits back to scikit-learn's features: uint8 [B, 3, H, W] -> float32 [B, 64] in 0..16."""
    gray = images.float().mean(dim=1, keepdim=True) * (DIGIT_MAX / 255)
    return F.adaptive_avg_pool2d(gray, DIGIT_SIDE).flatten(1)


class ImageFiles:
    """Images in files of the common formats, wherever these lie; `name` and `open` say where.

    Images are decoded when asked for, turned as their EXIF tag says, laid on white where they are transparent, and
    cropped as in ADM (see `center_crop`).

    Raises:
        UserError: when an image is asked for: its file can not be read.
    """

    image_size: Size
    labels: np.ndarray  # [N] int64; all 0 where there are no classes
    classes: list[str]
    flips = True

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        return decode(partial(self.open, index), self.name(index), self.image_size)

    def name(self, index: int) -> str:
        """Where image `index` is stored, in words."""
        raise NotImplementedError

    def open(self, index: int) -> BinaryIO:
        """The file of image `index`."""
        raise NotImplementedError

    def damage(self, index: int) -> str:
        """What keeps an image from being read; nothing if it is intact. Cheaper than decoding it."""
        try:
            with self.open(index) as file, Image.open(file) as image:
                if image.format == "PNG":
                    image.verify()  # its checksums; does nothing for most other formats
                else:
                    image.draft("RGB", (1, 1))  # an eighth of a JPEG's size
                    image.load()
        except Exception as error:  # Pillow's readers raise many kinds
            return str(error) or repr(error)
        return ""


class ImageFolder(ImageFiles):
    """Images in `root/CLASS/FILE`, classes and files in alphabetical order; or in `root/FILE`, then without classes.

    Raises:
        UserError: the folder is missing, empty, with images both directly and in subfolders, or a class folder has no
            images; when an image is asked for: the file can not be read.
    """

    def __init__(self, root: str | Path, image_size: Size):
        self.root = Path(root)
        self.image_size = image_size
        self.classes = _class_folders(self.root)
        files = [image_files(self.root, name) for name in self.classes or ("",)]
        self.labels = np.repeat(
            np.arange(len(files), dtype=np.int64), [len(names) for names in files]
        )
        self._files = [name for names in files for name in names]

    def path(self, index: int) -> Path:
        """Where image `index` is stored."""
        return self.root / self._folder(index) / self._files[index]

    def _folder(self, index: int) -> str:
        return self.classes[self.labels[index]] if self.classes else ""

    def name(self, index: int) -> str:
        """Where image `index` is stored, in words."""
        return str(self.path(index))

    def open(self, index: int) -> BinaryIO:
        """The file of image `index`."""
        return self.path(index).open("rb")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names of classes and files, in order."""
        digest = hashlib.sha256()
        for index, name in enumerate(self._files):
            digest.update(f"{self._folder(index)}/{name}\n".encode())
        return digest.hexdigest()


def decode(open_file: Callable[[], BinaryIO], name: str, size: Size) -> Tensor:
    """An image file in RGB, cropped as in ADM: uint8 [3, H, W].

    Raises:
        UserError: it can not be read; `name` says which it is.
    """
    pixels = center_crop(_read(open_file, name), size)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_rgb(path: Path) -> Image.Image:
    """An image file in RGB, turned as its EXIF tag says, laid on white where it is transparent.

    Raises:
        UserError: it can not be read.
    """
    return _read(lambda: path.open("rb"), str(path))


def _read(open_file: Callable[[], BinaryIO], name: str) -> Image.Image:
    try:
        with open_file() as file, Image.open(file) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except READ_ERRORS as error:
        raise UserError(
            f"{name} can not be read as an image ({error})",
            "an intact image file",
            "replace or delete it",
        ) from error


def center_crop(image: Image.Image, size: Size) -> np.ndarray:
    """ADM's crop (2105.05233): halve by box filter down to under twice `size`, then bicubic, then the middle.

    Args:
        image: RGB, of any size.
        size: of the result; ADM's are square, others are covered by the image.

    Returns:
        [H, W, 3] uint8.
    """
    height, width = sides(size)
    while min(image.height / height, image.width / width) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.array(image)[top : top + height, left : left + width]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip to white
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _class_folders(root: Path) -> list[str]:
    """Names of the class folders; none where the images lie directly in `root`, beside folders of other things."""
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder",
            "a folder of images, or with one subfolder of images per class",
            "check the path",
        )
    with os.scandir(root) as scan:
        entries = sorted(
            (entry for entry in scan if not entry.name.startswith(".")),
            key=lambda entry: entry.name,
        )
    folders = [entry.name for entry in entries if entry.is_dir()]
    image = next(
        (entry.name for entry in entries if is_image(entry.name) and entry.is_file()), None
    )
    inside = (
        next((name for name in folders if any(map(is_image, os.listdir(root / name)))), None)
        if image
        else None
    )
    if inside:
        raise UserError(
            f"{root} has images both directly ({image}) and in subfolders ({inside})",
            "one or the other: images without classes, or one subfolder of images per class",
            "move one of the two kinds away",
        )
    if image or folders:
        return [] if image else folders
    raise UserError(
        f"{root} has neither images nor subfolders",
        "images, or one subfolder of images per class",
        "check the path",
    )


def image_files(root: Path, name: str) -> list[str]:
    """Names of the image files in the class folder `root/name`, or in `root` for an empty name, in alphabetical order.

    Raises:
        UserError: there are none.
    """
    with os.scandir(root / name) as scan:
        entries = list(scan)
    files = sorted(entry.name for entry in entries if is_image(entry.name))
    if files:
        return files
    if any(entry.is_dir() for entry in entries):
        do = f"pass {root / name} if that folder holds the classes"
    else:
        do = f"add images ({', '.join(sorted(EXTENSIONS))}) or delete the folder"
    raise UserError(f"class folder {root / name} has no images", "images in every class folder", do)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
