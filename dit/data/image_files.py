"""Image files: which files are images, which classes a folder has, and how a file is read."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dit.errors import UserError
from dit.utils.image_size import Size, sides

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
READ_ERRORS = (  # that Pillow raises for damaged files
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
OpenFile = Callable[[], BinaryIO]


# -- which files are images ------------------------------------------------------------------------


def is_image(name: str) -> bool:
    """Return whether a file of this name counts as an image."""
    _, extension = os.path.splitext(name)
    return not name.startswith(".") and extension.lower() in EXTENSIONS


# -- the class of an image: the subfolder that holds it --------------------------------------------


def find_classes(root: Path) -> list[str]:
    """Return the names of the class folders; none where the images lie directly in `root`.

    Subfolders beside such images are ignored, unless they hold images too.
    """
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder",
            "a folder of images, or with one subfolder of images per class",
            "check the path",
        )
    with os.scandir(root) as scan:
        visible = [entry for entry in scan if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in visible if entry.is_dir())
    images = [entry.name for entry in visible if is_image(entry.name) and entry.is_file()]

    if not images and not folders:
        raise UserError(
            f"{root} has neither images nor subfolders",
            "images, or one subfolder of images per class",
            "check the path",
        )
    if not images:
        return folders

    with_images = (name for name in folders if any(map(is_image, os.listdir(root / name))))
    mixed = next(with_images, None)
    if mixed is not None:
        raise UserError(
            f"{root} has images both directly ({min(images)}) and in subfolders ({mixed})",
            "one or the other: images without classes, or one subfolder of images per class",
            "move one of the two kinds away",
        )
    return []


def list_image_files(root: Path, name: str) -> list[str]:
    """Return the image files of class folder `root/name`, sorted; of `root` if `name` is empty."""
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


# -- reading ---------------------------------------------------------------------------------------


def read_image(open_file: OpenFile, name: str) -> Image.Image:
    """Read an image file in RGB, rotated as its EXIF tag says, on white where it is transparent.

    Args:
        name: of the file, for the error message.
    """
    try:
        with open_file() as file, Image.open(file) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except READ_ERRORS as error:
        raise UserError(
            f"{name} cannot be read as an image ({error})",
            "an intact image file",
            "replace or delete it",
        ) from error


def read_rgb(path: Path) -> Image.Image:
    """Read the image file at `path`; see `read_image`."""
    return read_image(lambda: path.open("rb"), str(path))


def read_pixels(open_file: OpenFile, name: str, size: Size) -> Tensor:
    """Read an image file and crop it as ADM does: uint8 [3, H, W]."""
    pixels = center_crop(read_image(open_file, name), size)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def find_damage(open_file: OpenFile) -> str:
    """Return why an image file cannot be read, or "" if it is intact. Cheaper than reading it."""
    try:
        with open_file() as file, Image.open(file) as image:
            if image.format == "PNG":
                image.verify()  # checksums; for most other formats this does nothing
            else:
                image.draft("RGB", (1, 1))  # decodes a JPEG at an eighth of its size
                image.load()
    except Exception as error:  # Pillow's readers raise many kinds
        return str(error) or repr(error)
    return ""


def center_crop(image: Image.Image, size: Size) -> np.ndarray:
    """Crop as ADM does (2105.05233): box-filter halvings, a bicubic resize, then the center.

    Args:
        image: RGB, of any size.
        size: of the result. ADM's are square; a rectangle is covered by the resized image.

    Returns:
        [H, W, 3] uint8.
    """
    height, width = sides(size)
    while min(image.height / height, image.width / width) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)

    scale = max(height / image.height, width / image.width)
    resized = round(image.width * scale), round(image.height * scale)
    image = image.resize(resized, Image.Resampling.BICUBIC)

    left = (image.width - width) // 2
    top = (image.height - height) // 2
    return np.array(image)[top : top + height, left : left + width]


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow would clip 16-bit gray to white
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
