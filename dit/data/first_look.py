"""What some of the images show before work on all of them: whether they have colours, and sizes."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from dit.data.counts import count_of
from dit.data.image_files import read_size_of, reading_threads
from dit.data.images import ImageFiles, Images
from dit.errors import UserError
from dit.utils.image_size import Size, sides, size_flag

FOR_COLOURS, FOR_SIZES = 32, 1000  # images that are looked at
GRAY = 16  # levels between the channels of a gray image, as a JPEG or an autoencoder has it
SMALL = 0.5  # share of the image size below which an enlarged image is only blurred


def is_coloured(pixels: Tensor) -> bool:
    """Return whether images [..., 3, H, W] uint8 have colours."""
    return int((pixels.amax(dim=-3).int() - pixels.amin(dim=-3).int()).max()) > GRAY


def have_colours(images: Images) -> bool:
    """Return whether some images are coloured; those that cannot be read are passed over."""
    for index in spread_indices(len(images), FOR_COLOURS):
        try:
            if is_coloured(images[index]):
                return True
        except UserError:
            continue  # the check of all images will name it
    return False


def question_sizes(images: Images, size: Size, left_out: Sequence[int] = ()) -> list[str]:
    """Return how many images are much smaller than the size to which they are enlarged.

    Only headers are read. Images that are not in files of their own are unknown.
    """
    if not isinstance(images, ImageFiles):
        return []
    used = np.setdiff1d(np.arange(len(images)), left_out)
    looked_at = used[spread_indices(len(used), FOR_SIZES)].tolist()
    with reading_threads() as pool:
        found = list(pool.map(partial(_size_of, images), looked_at))

    height, width = sides(size)
    small = [each for each in found if each[0] < SMALL * height or each[1] < SMALL * width]
    if not small:
        return []
    least = min(small, key=min)
    among = count_of(len(used), "image")
    if len(looked_at) < len(used):
        among = f"{count_of(len(looked_at), 'image')} looked at"
    return [
        f"{len(small):,} of {among} are less than half as high or wide as {size_flag(size)} (the "
        f"smallest has {least[1]}x{least[0]} pixels): enlarged, they teach blur; leave them out, "
        "or pass a smaller --image-size"
    ]


def _size_of(images: ImageFiles, index: int) -> tuple[int, int]:
    return read_size_of(partial(images.open, index), images.name(index))


def spread_indices(count: int, most: int) -> list[int]:
    """Return the indices of at most `most` of `count` images, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64).tolist()
