"""The images to score: from a folder, an .npz file or memory."""

import csv
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit.data.image_files import (
    EXTENSIONS,
    READ_ERRORS,
    center_crop,
    image_files,
    is_image,
    read_rgb,
)
from dit.data.images import ImageFolder, Images
from dit.errors import UserError
from dit.evaluation.inputs.archives import open_npz, read_array
from dit.utils.files import sha256
from dit.utils.image_size import Size, describe_size, sides

BYTE_MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
)  # Pillow's, with at most 8 bits a channel
ORIENTATION, SIDEWAYS = (
    0x0112,
    (5, 6, 7, 8),
)  # the EXIF tag, and its values for images that lie on their side
BLOCK, LARGE = (
    256,
    2000,
)  # images of one piece of work; images from which on a bar shows how far it is

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, read one by one.

    Args:
        name: what they are, for messages and the protocol.
        size: (height, width) in pixels.
        read: index -> [3, H, W] uint8; threads may call it.
        contents: SHA-256 of all that the pixels come from, in order (bytes of files, or pixels, and the crop), but not
            of names; it reads everything.
        labels: class name of each image, where known.
    """

    name: str
    count: int
    size: tuple[int, int]
    read: Callable[[int], Tensor]
    contents: Callable[[], str]
    labels: list[str] | None = None

    def __len__(self) -> int:
        return self.count

    def stack(self, indices: Sequence[int]) -> Tensor:
        """[n, 3, H, W] uint8."""
        return torch.stack([self.read(i) for i in indices])


def read_images(path: Path, crop: Size | None = None) -> ImageSet:
    """Images of a folder or an .npz file.

    A folder holds image files, with their classes in `labels.csv` (columns file, label, and class for
    its name) where known, or one
    subfolder of images per class. An .npz file has ADM's layout: `arr_0` uint8 [N, H, W, 3] or, of gray images,
    [N, H, W], and `arr_1` [N] classes where known. Files are turned and laid on white as in training.

    Args:
        crop: crop images of any size to this one, in pixels, as ADM does (see `center_crop`).

    Raises:
        UserError: missing, empty, unreadable, of several sizes without `crop`, not 8-bit, or with labels that do not
            fit.
    """
    if path.is_dir():
        return _read_folder(path, crop)
    if path.suffix in (".npz", ".pkl") and path.is_file():
        return _read_npz(path, crop)
    raise UserError(f"{path} is not a folder or an .npz file", "existing images", "check the path")


def from_array(array: np.ndarray, name: str, labels: Sequence[Any] | None = None) -> ImageSet:
    """Images in memory, uint8: [N, H, W, 3], or gray as [N, H, W] or [N, H, W, 1].

    Raises:
        UserError: another shape or type, NaN, or as many labels as images are not.
    """
    pixels = _with_channels(array, name)
    _check_type(pixels, name)
    if labels is not None and len(labels) != len(pixels):
        raise UserError(
            f"{len(labels)} labels for {len(pixels)} images in {name}",
            "one label for each image",
            "write arr_1 again",
        )

    def read(index: int) -> Tensor:
        return torch.from_numpy(pixels[index]).permute(2, 0, 1).expand(3, -1, -1)

    return ImageSet(
        name=name,
        count=len(pixels),
        size=pixels.shape[1:3],
        read=read,
        contents=lambda: _contents_of_pixels(read, pixels.shape[:3], name),
        labels=None if labels is None else [str(label) for label in labels],
    )


def from_data(images: Images, name: str) -> ImageSet:
    """The images of a data set, as training sees them."""
    size = sides(images.image_size)
    labels = [images.classes[label] for label in images.labels] if images.classes else None

    def contents() -> str:
        if isinstance(images, ImageFolder):
            paths = [images.path(i) for i in range(len(images))]
            return _contents_of_files(paths, images.image_size, name)
        return _contents_of_pixels(images.__getitem__, (len(images), *size), name)

    return ImageSet(
        name=name,
        count=len(images),
        size=size,
        read=images.__getitem__,
        contents=contents,
        labels=labels,
    )


def has_images(path: Path) -> bool:
    """Whether an .npz file holds images."""
    with open_npz(path) as file:
        return "arr_0" in file.files


# -- folders -----------------------------------------------------------------------------------------------------


def _read_folder(root: Path, crop: Size | None) -> ImageSet:
    entries, folders, inside = _list(root)
    paths = [entry for entry in entries if is_image(entry.name)]
    archives = [entry for entry in entries if entry.suffix == ".npz"]
    if paths and inside:
        raise UserError(
            f"{root} has images both directly ({paths[0].name}) and in subfolders ({inside})",
            "one or the other",
            "move one of the two kinds away",
        )
    if paths:
        return _from_files(
            root, paths, _read_labels(root / "labels.csv", [path.name for path in paths]), crop
        )
    if len(archives) == 1 and not inside:
        return _read_npz(archives[0], crop)
    paths = [folder / name for folder in folders for name in image_files(root, folder.name)]
    if paths:
        return _from_files(root, paths, [path.parent.name for path in paths], crop)
    found = ", ".join(entry.name for entry in entries[:3]) + (", …" if len(entries) > 3 else "")
    raise UserError(
        f"{root} has no images" + (f" but {found}" if found else ""),
        f"image files ({', '.join(sorted(EXTENSIONS))}) or one .npz file",
        "check the path",
    )


def _list(root: Path) -> tuple[list[Path], list[Path], Path | None]:
    """What is in a folder, its subfolders, and the first image in these."""
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        folders = [entry for entry in entries if not is_image(entry.name) and entry.is_dir()]
        inside = next(
            (entry for folder in folders for entry in folder.iterdir() if is_image(entry.name)),
            None,
        )
    except OSError as error:
        raise UserError(
            f"{root} can not be read ({error})",
            "a folder that you may read",
            "check its permissions and links",
        ) from error
    return entries, folders, inside


def _from_files(
    root: Path, paths: list[Path], labels: list[str] | None, crop: Size | None
) -> ImageSet:
    size = sides(crop) if crop else _common_size(paths)

    def read(index: int) -> Tensor:
        image = read_rgb(paths[index])
        return torch.from_numpy(center_crop(image, crop) if crop else np.array(image)).permute(
            2, 0, 1
        )

    return ImageSet(
        name=str(root),
        count=len(paths),
        size=size,
        read=read,
        labels=labels,
        contents=lambda: _contents_of_files(paths, crop, str(root)),
    )


def _read_labels(path: Path, names: Sequence[str]) -> list[str] | None:
    """The label of each named file; None without labels.csv."""
    if not path.is_file():
        return None
    try:
        with path.open(
            newline="", encoding="utf-8-sig"
        ) as file:  # spreadsheets put a mark before the first column
            rows = csv.DictReader(file)
            columns = rows.fieldnames or ()
            labels = {row.get("file"): row.get("class") or row.get("label") for row in rows}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} can not be read ({error})", "text in UTF-8", "write it again"
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
    """(height, width) that all files say they have."""
    first = _header(paths[0])
    for path, size in zip(
        paths, _in_threads(lambda i: _header(paths[i]), len(paths), "sizes"), strict=True
    ):
        if size != first:
            raise UserError(
                f"images of different sizes: {paths[0]} is {describe_size(first)}, {path} is {describe_size(size)}",
                "images of one size",
                "crop them: --crop crops a reference, --image-size in dit stats",
            )
    return first


def _header(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            if image.mode not in BYTE_MODES:
                raise UserError(
                    f"{path} has pixels of mode {image.mode}",
                    "8 bits a channel",
                    "save it as 8-bit RGB",
                )
            turned = "exif" in image.info and image.getexif().get(ORIENTATION) in SIDEWAYS
            return (image.width, image.height) if turned else (image.height, image.width)
    except READ_ERRORS as error:
        raise UserError(
            f"{path} can not be read as an image ({error})",
            "an intact image file",
            "replace or delete the file",
        ) from error


# -- arrays ------------------------------------------------------------------------------------------------------


def _read_npz(path: Path, crop: Size | None) -> ImageSet:
    with open_npz(path) as file:
        array = read_array(file, path, "arr_0")
        labels = read_array(file, path, "arr_1") if "arr_1" in file.files else None
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iuU"):
        raise UserError(
            f"labels {labels.dtype} {list(labels.shape)} in {path}",
            "arr_1 [N], whole numbers or names",
            "write arr_1 again; x.argmax(1) turns one-hot vectors into numbers",
        )
    images = from_array(array, str(path), None if labels is None else labels.tolist())
    return images if crop is None else _cropped(images, crop)


def _cropped(images: ImageSet, crop: Size) -> ImageSet:
    def read(index: int) -> Tensor:
        image = Image.fromarray(images.read(index).permute(1, 2, 0).contiguous().numpy())
        return torch.from_numpy(center_crop(image, crop)).permute(2, 0, 1)

    def contents() -> str:
        return hashlib.sha256(f"{images.contents()} cropped to {crop}".encode()).hexdigest()

    return dataclasses.replace(images, size=sides(crop), read=read, contents=contents)


def _with_channels(array: np.ndarray, name: str) -> np.ndarray:
    """[N, H, W, 3], or [N, H, W, 1] of gray images."""
    shape = array.shape
    if array.size == 0:
        raise UserError(
            f"no images in {name}: its array has the shape {list(shape)}",
            "[N, H, W, 3]",
            "write the file again",
        )
    if array.ndim == 4 and shape[3] in (1, 3):
        return array
    if array.ndim == 3 and shape[2] not in (1, 3, 4):
        return array[..., None]
    if array.ndim == 4 and shape[1] in (1, 3):
        do = "transpose them: x.transpose(0, 2, 3, 1), of a tensor x.permute(0, 2, 3, 1)"
    elif array.ndim == 4 and shape[3] == 4:
        do = "drop the alpha channel: x[..., :3]"
    else:
        do = "a single image is x[None]; flat images need x.reshape(N, H, W, 3)"
    raise UserError(
        f"images in {name} have the shape {list(shape)}",
        "[N, H, W, 3], or [N, H, W] of gray images",
        do,
    )


def _check_type(array: np.ndarray, name: str) -> None:
    if array.dtype == np.uint8:
        return
    expected = "uint8 pixels 0..255"
    if array.dtype.kind not in "fiu":
        raise UserError(
            f"{array.dtype} pixels in {name}", expected, "convert them: x.astype('uint8') of 0..255"
        )
    if array.dtype.kind == "f":
        bad = next((i for i, image in enumerate(array) if not np.isfinite(image).all()), None)
        if bad is not None:
            raise UserError(f"NaN or infinity in image {bad} of {name}", expected, "sample again")
    low, high = float(array.min()), float(array.max())
    raise UserError(
        f"{array.dtype} pixels in {low:.3g}..{high:.3g} in {name}",
        expected,
        f"convert them: {_conversion(low, high, array.dtype.kind)}",
    )


def _conversion(low: float, high: float, kind: str) -> str:
    """The expression that brings pixels `x` in low..high to uint8; models overshoot their range a little."""
    if high > 256 or low < -2:
        return "bring them to 0..255 first"
    if kind != "f" or high > 2:
        return "x.clip(0, 255).round().astype('uint8')"
    scaled = "(x + 1) * 127.5" if low < -0.1 else "x * 255"
    return f"({scaled}).round().clip(0, 255).astype('uint8')"


# -- content -----------------------------------------------------------------------------------------------------


def _contents_of_files(paths: Sequence[Path], crop: Size | None, name: str) -> str:
    return _contents(f"files, crop {crop}", lambda i: _sha256(paths[i]), len(paths), name)


def _contents_of_pixels(read: Callable[[int], Tensor], shape: tuple[int, ...], name: str) -> str:
    """Of images read one by one; shape [N, H, W]."""

    def digest(index: int) -> bytes:
        return hashlib.sha256(read(index).numpy().tobytes()).digest()

    return _contents(f"pixels {shape[1:]}", digest, shape[0], name)


def _contents(about: str, digest: Callable[[int], bytes], count: int, name: str) -> str:
    """SHA-256 over `about` and the digests of `count` images in order."""
    whole = hashlib.sha256(about.encode())
    for part in _in_threads(digest, count, f"hashing {name}"):
        whole.update(part)
    return whole.hexdigest()


def _sha256(path: Path) -> bytes:
    try:
        return bytes.fromhex(sha256(path))
    except OSError as error:
        raise UserError(
            f"{path} can not be read ({error})",
            "a file that you may read",
            "check its permissions, or delete the file",
        ) from error


def _in_threads(work: Callable[[int], Result], count: int, title: str) -> Iterator[Result]:
    """Results for `count` images in order; a bar where there are many."""
    blocks = [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
    with (
        ThreadPoolExecutor(4) as pool,
        tqdm(desc=title, total=count, unit="img", disable=count < LARGE) as bar,
    ):
        for results in pool.map(lambda block: [work(i) for i in block], blocks):
            yield from results
            bar.update(len(results))
