"""Image files: how they are read and checked, to RGB of 8 bits, and cropped."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from dit.data import png
from dit.data.image_formats import describe_unknown, picture_formats
from dit.errors import UserError
from dit.utils.image_size import Size, sides

OpenFile = Callable[[], BinaryIO]

ORIENTATION = 0x0112  # EXIF tag
TURNS = {  # by its value
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
DARK = 16  # of 256 levels: 16 bits that hold 12 have no brighter one
RANGES = ((0, 1), (-1, 1), (0, 255), (0, 4095), (0, 65535))  # usual black and white
PHOTOMETRIC = 262  # TIFF tag
WHITE_IS_ZERO = 0  # its value in negatives, which Pillow turns only up to 8 bits

# Pillow warns of large images, and refuses twice as large ones
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


# -- reading ---------------------------------------------------------------------------------------


def read_image(open_file: OpenFile, name: str) -> Image.Image:
    """Read an image file in RGB, rotated as its EXIF tag says, on white where it is transparent.

    Of films and of files with several pages it is the first image.

    Args:
        name: of the file, for the error message.
    """
    try:
        return _decode(open_file)
    except Exception as error:  # Pillow's readers raise many kinds
        raise _unreadable(name, error) from error


def read_rgb(path: Path) -> Image.Image:
    """Read the image file at `path`; see `read_image`."""
    return read_image(lambda: path.open("rb"), str(path))


def read_pixels(open_file: OpenFile, name: str, size: Size) -> Tensor:
    """Read an image file and crop it as ADM does: uint8 [3, H, W]."""
    pixels = center_crop(read_image(open_file, name), size)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file, without decoding 8 bits; refuse unfit pixels."""
    return read_size_of(lambda: path.open("rb"), str(path))


def read_size_of(open_file: OpenFile, name: str) -> tuple[int, int]:
    """Return (height, width) of an image that is no file of its own, as `read_size` does."""
    try:
        with open_file() as file, _open(file) as image:
            if image.mode.startswith(("I", "F")):
                _decode(open_file)
            # Pillow's getexif() would decode a PNG without EXIF in full; it turns a TIFF itself
            known = "exif" in image.info or image.format not in ("PNG", "TIFF")
            turned = known and _orientation(image) in SIDEWAYS
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # Pillow's readers raise many kinds
        raise _unreadable(name, error) from error


def find_damage(open_file: OpenFile) -> str:
    """Return why `read_image` cannot read a file, or "" if it can. Cheaper than reading a JPEG."""
    try:
        _decode(open_file, small=True)
    except Exception as error:  # Pillow's readers raise many kinds
        return _reason(error)
    return ""


def reading_threads() -> ThreadPoolExecutor:
    """Return threads that read images, or ask for their sizes and times."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name} cannot be read as an image ({_reason(error)})",
        "an intact image of 8 bits a channel, or of 16",
        "replace or delete it",
    )


def _reason(error: Exception) -> str:
    # a link may lead nowhere, and only the system knows its name
    name = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and name and os.path.islink(name):
        return f"a link to {os.readlink(name)}, which is missing"
    # an error of the system repeats the name of the file
    return getattr(error, "strerror", None) or str(error) or repr(error)


def _decode(open_file: OpenFile, small: bool = False) -> Image.Image:
    """Decode an image file to upright RGB.

    Args:
        small: decode a JPEG at an eighth of its size. All of its bytes are read all the same.
    """
    with open_file() as file, _open(file) as image:
        if small:
            image.draft("RGB", (1, 1))
        layout = _layout(image)
        image.load()
        turn = TURNS.get(_orientation(image))
        rgb = to_rgb(image, layout)
        return rgb if turn is None else rgb.transpose(turn)


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """Read the header of an image file."""
    start = file.read(64)
    file.seek(0)
    if start.startswith(png.SIGNATURE):
        file = png.read_png(file)
    try:
        return Image.open(file, formats=picture_formats())
    except UnidentifiedImageError:
        raise ValueError(describe_unknown(start)) from None


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # metadata never decides over pixels
        return 1
    return value if isinstance(value, int) else 1


# -- pixels ----------------------------------------------------------------------------------------


def _layout(image: ImageFile.ImageFile) -> str:
    """Return how the file stores its pixels, such as "I;16B" or "RGB;16L"; before they are loaded.

    The letters are Pillow's "raw modes". The last ones are S for signed numbers and B for bytes in
    big-endian order.
    """
    args = image.tile[0].args if image.tile else ""
    if isinstance(args, tuple):
        args = args[0] if args else ""
    return str(args)


def to_rgb(image: Image.Image, layout: str = "") -> Image.Image:
    """Return an image that is loaded in RGB of 8 bits, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image, layout)
    elif ";16" in layout and _brightest(image) < DARK:
        # Pillow keeps the high byte of each channel
        raise ValueError(
            "16 bits a channel without a value above 4095, which look like 12 bits or fewer: "
            "scale them so that white is 65535"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image, layout: str) -> Image.Image:
    """Reduce 16-bit gray to 8 bits by its high byte; refuse numbers whose white is unknown.

    Whether 0 … 4095 are 12 bits or a dark picture, a file does not say: PNG's sBIT is about scaled
    values. Either would be nearly black, so that refusing loses no picture worth training on.
    """
    values = np.asarray(image)
    if ";12" in layout:  # TIFF says so
        return Image.fromarray((values >> 4).astype(np.uint8))

    unsigned = image.mode.startswith("I;16") or ";16" in layout or image.format == "PPM"
    if not unsigned or layout.endswith("S"):
        kind = "float" if image.mode == "F" else "signed or 32-bit whole"
        raise ValueError(f"{kind} numbers, {_convert(values)}")
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise ValueError(f"16-bit gray whose white is 0, {_convert(values)}")
    if 0 < values.max() < DARK << 8:
        raise ValueError(f"16-bit gray that looks like 12 bits or fewer, {_convert(values)}")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _convert(values: np.ndarray) -> str:
    """Return the range of gray values, and how to write 8 bits."""
    low, high = values.min().item(), values.max().item()
    fitting = (span for span in RANGES if span[0] <= low and high <= span[1])
    black, white = next(fitting, (low, high))
    return (
        f"from {low:g} to {high:g}: write 8 bits with your black and white, as by "
        'python -c "import sys, numpy as np; from PIL import Image; '
        f"black, white = {black:g}, {white:g}; "
        "[Image.fromarray(np.interp(np.array(Image.open(f)), [black, white], [0, 255])"
        ".round().astype('uint8')).save(f + '.png') for f in sys.argv[1:]]\" FILES"
    )


def _brightest(image: Image.Image) -> int:
    """Return the largest value of the channels of colour."""
    return int(np.asarray(image.convert("RGB")).max())


# -- cropping --------------------------------------------------------------------------------------


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
