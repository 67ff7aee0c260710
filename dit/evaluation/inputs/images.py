"""The images to score: from a folder, an .npz file or memory."""

import csv
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit.data.image_files import center_crop, read_rgb, read_size
from dit.data.image_folder import find_images, list_images
from dit.data.images import ImageFolder, Images
from dit.errors import UserError
from dit.evaluation.inputs.archives import open_npz, read_array
from dit.utils.files import sha256
from dit.utils.image_size import Size, describe_size, sides

USED = ("labels.csv", "samples.json")  # files beside the images that are read, too
BLOCK = 256  # images of one piece of work
PROGRESS_FROM = 2000  # images from which on a progress bar is shown

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, read one by one, or made in batches.

    Args:
        name: what they are, for messages and the protocol.
        size: (height, width) in pixels.
        read: index -> [3, H, W] uint8; threads may call it.
        contents: SHA-256 of everything that determines the pixels, in order: bytes of files, or
            pixels, and the crop, but no names. It reads all images.
        labels: class name of each image, where known.
        notes: what the user should know of, such as files left out.
        batch: indices -> [n, 3, H, W] uint8, of images that are made together; one thread calls it.
    """

    name: str
    count: int
    size: tuple[int, int]
    read: Callable[[int], Tensor]
    contents: Callable[[], str]
    labels: list[str] | None = None
    notes: Sequence[str] = ()
    batch: Callable[[Sequence[int]], Tensor] | None = None

    def __len__(self) -> int:
        return self.count

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Return these images, [n, 3, H, W] uint8."""
        return torch.stack([self.read(i) for i in indices])


def read_images(path: Path, crop: Size | None = None) -> ImageSet:
    """Return the images of a folder or an .npz file.

    A folder holds image files, with classes in `labels.csv` (columns file, label, and class for a
    name) where known, or one subfolder of images per class. An .npz file has ADM's layout: `arr_0`
    uint8 [N, H, W, 3], or [N, H, W] of gray images, and `arr_1` [N] classes where known. EXIF turns
    and transparency are handled as in training.

    Args:
        crop: crop images of any size to this one, in pixels, as ADM does (see `center_crop`).
    """
    if path.is_dir():
        return _read_folder(path, crop)
    if path.suffix in (".npz", ".pkl") and path.is_file():
        return _read_npz(path, crop)
    raise UserError(f"{path} is not a folder or an .npz file", "existing images", "check the path")


def from_array(array: np.ndarray, name: str, labels: Sequence[Any] | None) -> ImageSet:
    """Return images in memory, uint8: [N, H, W, 3], or gray as [N, H, W] or [N, H, W, 1]."""
    pixels = _with_channels(array, name)
    if labels is not None and len(labels) != len(pixels):
        raise UserError(
            f"{len(labels)} labels for {len(pixels)} images in {name}",
            "one label for each image",
            "write arr_1 again",
        )

    def read(index: int) -> Tensor:
        image = torch.from_numpy(pixels[index]).permute(2, 0, 1)
        return image.expand(3, -1, -1)  # of gray images, without a copy

    names = None if labels is None else [str(label) for label in labels]
    return from_reader(read, len(pixels), pixels.shape[1:3], name, names)


def from_reader(
    read: Callable[[int], Tensor],
    count: int,
    size: tuple[int, int],
    name: str,
    labels: list[str] | None = None,
) -> ImageSet:
    """Return images that a function has by their index: [3, H, W] uint8 of this size [H, W]."""
    contents = partial(_hash_pixels, read, (count, *size), name)
    return ImageSet(name, count, size, read, contents, labels)


def from_batches(
    make: Callable[[Sequence[int]], Tensor], count: int, size: tuple[int, int], name: str
) -> ImageSet:
    """Return images that a function makes from their indices: [n, 3, H, W] uint8 of this size."""
    images = from_reader(lambda index: make([index])[0], count, size, name)
    return dataclasses.replace(images, batch=make)


def from_data(images: Images, name: str) -> ImageSet:
    """Return the images of a data set, as training sees them."""
    size = sides(images.image_size)
    labels = [images.classes[label] for label in images.labels] if images.classes else None

    def contents() -> str:
        if isinstance(images, ImageFolder):
            paths = [images.path(i) for i in range(len(images))]
            return _hash_files(paths, images.image_size, name)
        return _hash_pixels(images.__getitem__, (len(images), *size), name)

    return ImageSet(name, len(images), size, images.__getitem__, contents, labels, images.notes)


def select(images: ImageSet, indices: Sequence[int]) -> ImageSet:
    """Return some of the images."""
    if len(indices) == len(images):
        return images

    def contents() -> str:
        return hashlib.sha256(f"{images.contents()}, of these {[*indices]}".encode()).hexdigest()

    labels = images.labels
    return dataclasses.replace(
        images,
        count=len(indices),
        read=lambda index: images.read(indices[index]),
        contents=contents,
        labels=labels and [labels[i] for i in indices],
        batch=None,
    )


def has_images(path: Path) -> bool:
    """Return whether an .npz file holds images."""
    with open_npz(path) as file:
        return "arr_0" in file.files


# -- folders ---------------------------------------------------------------------------------------


def _read_folder(root: Path, crop: Size | None) -> ImageSet:
    archives = [path for path in root.glob("*.npz") if not path.name.startswith(".")]
    if len(archives) == 1 and not find_images(root):
        return _read_npz(archives[0], crop)

    listing = list_images(root, USED)
    labels = listing.labels or _read_labels(root / "labels.csv", listing.paths)
    paths = [root / path for path in listing.paths]
    return _from_files(root, paths, labels, listing.notes, crop)


def _from_files(
    root: Path,
    paths: list[Path],
    labels: list[str] | None,
    notes: Sequence[str],
    crop: Size | None,
) -> ImageSet:
    size = sides(crop) if crop else _common_size(paths)

    def read(index: int) -> Tensor:
        image = read_rgb(paths[index])
        pixels = center_crop(image, crop) if crop else np.array(image)
        if pixels.shape[:2] != size:  # an orientation that only the end of the file tells
            raise _different_sizes(root, size, paths[index], pixels.shape[:2])
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def contents() -> str:
        return _hash_files(paths, crop, str(root))

    return ImageSet(str(root), len(paths), size, read, contents, labels, notes)


def _read_labels(path: Path, names: Sequence[str]) -> list[str] | None:
    """Return the label of each named file; None without labels.csv."""
    if not path.exists():
        return None
    try:
        # Spreadsheets put a byte order mark before the first column: utf-8-sig.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or ()
            labels = {row.get("file"): row.get("class") or row.get("label") for row in rows}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error})", "text in UTF-8", "write it again"
        ) from error

    if not {"file", "label"} <= set(columns):
        raise UserError(
            f"{path} has the columns {columns}", "columns file and label", "add a first line"
        )
    found = [labels.get(name) or "" for name in names]
    if "" in found:
        raise UserError(
            f"{path} has no label for {names[found.index('')]}",
            "a line for each image",
            "add it, or remove the image or labels.csv",
        )
    return found


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Return the (height, width) in the headers of all files."""
    first = read_size(paths[0])
    sizes = _in_threads(lambda i: read_size(paths[i]), len(paths), "sizes")
    for path, size in zip(paths, sizes, strict=True):
        if size != first:
            raise _different_sizes(paths[0], first, path, size)
    return first


def _different_sizes(
    first: Path, its_size: tuple[int, int], other: Path, other_size: tuple[int, ...]
) -> UserError:
    height, width = other_size
    return UserError(
        f"images of different sizes: {first} is {describe_size(its_size)}, "
        f"{other} is {describe_size((height, width))}",
        "images of one size",
        "crop them: --crop crops a reference, `dit stats --image-size` statistics",
    )


# -- arrays ----------------------------------------------------------------------------------------


def _read_npz(path: Path, crop: Size | None) -> ImageSet:
    with open_npz(path) as file:
        array = read_array(file, path, "arr_0")
        labels = read_array(file, path, "arr_1") if "arr_1" in file.files else None
    if labels is not None and not _are_labels(labels):
        raise UserError(
            f"labels {labels.dtype} {list(labels.shape)} in {path}, or some below 0",
            "arr_1 [N], whole numbers from 0 or names",
            "write arr_1 again; x.argmax(1) turns one-hot vectors into numbers",
        )
    images = from_array(array, str(path), None if labels is None else labels.tolist())
    return images if crop is None else _cropped(images, crop)


def _are_labels(values: np.ndarray) -> bool:
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        return False
    return values.dtype.kind == "U" or not (values < 0).any()


def _cropped(images: ImageSet, crop: Size) -> ImageSet:
    def read(index: int) -> Tensor:
        pixels = images.read(index).permute(1, 2, 0).contiguous()
        image = Image.fromarray(pixels.numpy())
        return torch.from_numpy(center_crop(image, crop)).permute(2, 0, 1)

    def contents() -> str:
        return hashlib.sha256(f"{images.contents()} cropped to {crop}".encode()).hexdigest()

    return dataclasses.replace(images, size=sides(crop), read=read, contents=contents)


def _with_channels(array: np.ndarray, name: str) -> np.ndarray:
    """Return [N, H, W, 3], or [N, H, W, 1] of gray images; refuse other types and layouts."""
    shape = array.shape
    if array.dtype == np.uint8 and array.size:
        if array.ndim == 4 and shape[3] in (1, 3):
            return array
        # [H, W, 3] or [H, W, 4] is one image, not a stack of gray ones.
        if array.ndim == 3 and shape[2] not in (1, 3, 4):
            return array[..., None]
    raise UserError(
        f"{array.dtype} images of shape {list(shape)} in {name}",
        "uint8 pixels 0..255, [N, H, W, 3], or [N, H, W] of gray images",
        "bring values in 0..1 to bytes by (x * 255).round().clip(0, 255).astype('uint8'), those in "
        "-1..1 by ((x + 1) * 127.5) first; move channels last by x.transpose(0, 2, 3, 1)",
    )


# -- hashes of content -----------------------------------------------------------------------------


def _hash_files(paths: Sequence[Path], crop: Size | None, name: str) -> str:
    return _hash_all(f"files, crop {crop}", lambda i: _sha256(paths[i]), len(paths), name)


def _hash_pixels(read: Callable[[int], Tensor], shape: tuple[int, ...], name: str) -> str:
    """Return the SHA-256 of images that are read one by one; shape [N, H, W]."""

    def digest(index: int) -> bytes:
        return hashlib.sha256(read(index).numpy().tobytes()).digest()

    return _hash_all(f"pixels {shape[1:]}", digest, shape[0], name)


def _hash_all(about: str, digest: Callable[[int], bytes], count: int, name: str) -> str:
    """Return the SHA-256 over `about` and the digests of `count` images in order."""
    total = hashlib.sha256(about.encode())
    for part in _in_threads(digest, count, f"hashing {name}"):
        total.update(part)
    return total.hexdigest()


def _sha256(path: Path) -> bytes:
    try:
        return bytes.fromhex(sha256(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error})",
            "a file that you may read",
            "check its permissions, or delete the file",
        ) from error


def _in_threads(work: Callable[[int], Result], count: int, title: str) -> Iterator[Result]:
    """Yield results for `count` images in order, with a progress bar where there are many."""
    blocks = [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
    bar = tqdm(desc=title, total=count, unit="img", disable=count < PROGRESS_FROM)
    with bar, ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda block: [work(i) for i in block], blocks):
            yield from results
            bar.update(len(results))
