"""The images to score: from a folder, an .npz file or memory."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit.data.images import EXTENSIONS, Images
from dit.errors import UserError
from dit.evaluation.archives import open_npz, read_array

READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
BYTE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's, with at most 8 bits a channel


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, read one by one.

    Args:
        name: what they are, for messages and the protocol.
        size: (height, width) in pixels.
        read: index -> [3, H, W] uint8.
        labels: class name of each image, where known.
    """

    name: str
    count: int
    size: tuple[int, int]
    read: Callable[[int], Tensor]
    labels: list[str] | None = None

    def __len__(self) -> int:
        return self.count

    def stack(self, indices: Sequence[int]) -> Tensor:
        """[n, 3, H, W] uint8."""
        return torch.stack([self.read(i) for i in indices])


def read_images(path: Path) -> ImageSet:
    """Images of a folder or an .npz file.

    A folder holds image files, with their classes in `labels.csv` (columns file, label, and class for
    its name) where known, or one
    subfolder of images per class. An .npz file has ADM's layout: `arr_0` [N, H, W, 3] uint8, and `arr_1` [N] classes
    where known.

    Raises:
        UserError: missing, empty, unreadable, of several sizes, not 8-bit, or with labels that do not fit.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _read_npz(path)
    raise UserError(f"{path} is not a folder or an .npz file", "existing images", "check the path")


def from_array(array: np.ndarray, name: str, labels: Sequence[Any] | None = None) -> ImageSet:
    """Images in memory, [N, H, W, 3] uint8.

    Raises:
        UserError: another shape or type, NaN, or as many labels as images are not.
    """
    _check_pixels(array, name)
    if labels is not None and len(labels) != len(array):
        raise UserError(f"{len(labels)} labels for {len(array)} images in {name}", "one label for each image",
                        "write arr_1 again")
    return ImageSet(
        name=name,
        count=len(array),
        size=array.shape[1:3],
        read=lambda i: torch.from_numpy(array[i]).permute(2, 0, 1),
        labels=None if labels is None else [str(label) for label in labels],
    )


def from_data(images: Images, name: str) -> ImageSet:
    """The images of a data set, as training sees them."""
    size = (images.image_size, images.image_size)
    labels = [images.classes[label] for label in images.labels]
    return ImageSet(name=name, count=len(images), size=size, read=images.__getitem__, labels=labels)


def _read_npz(path: Path) -> ImageSet:
    with open_npz(path) as file:
        images = read_array(file, path, "arr_0")
        labels = read_array(file, path, "arr_1") if "arr_1" in file.files else None
    return from_array(images, str(path), None if labels is None else labels.tolist())


def has_images(path: Path) -> bool:
    """Whether an .npz file holds images."""
    with open_npz(path) as file:
        return "arr_0" in file.files


def _read_folder(root: Path) -> ImageSet:
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    paths = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in EXTENSIONS]
    inside = [(path, folder.name) for folder in entries if folder.is_dir() for path in _image_paths(folder)]
    if paths and inside:
        raise UserError(f"{root} has images both directly ({paths[0].name}) and in subfolders ({inside[0][0]})",
                        "one or the other", "move one of the two kinds away")
    if paths:
        labels = _read_labels(root / "labels.csv", [path.name for path in paths])
    else:
        paths, labels = [path for path, _ in inside], [name for _, name in inside]
    if not paths:
        return _read_only_npz(root, [entry for entry in entries if entry.suffix == ".npz"])
    return ImageSet(name=str(root), count=len(paths), size=_common_size(paths), read=lambda i: _read_file(paths[i]),
                    labels=labels)


def _read_only_npz(root: Path, archives: list[Path]) -> ImageSet:
    if len(archives) == 1:
        return _read_npz(archives[0])
    raise UserError(f"{root} has no images", f"image files ({', '.join(sorted(EXTENSIONS))}) or one .npz file",
                    "check the path")


def _image_paths(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))


def _read_labels(path: Path, names: Sequence[str]) -> list[str] | None:
    """The label of each named file; None without labels.csv."""
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise UserError(f"{path} has the columns {rows.fieldnames}", "columns file and label", "add a first line")
        labels = {row["file"]: row.get("class") or row["label"] for row in rows}
    for name in names:
        if not labels.get(name):
            raise UserError(f"{path} has no label for {name}", "a line for each image",
                            "add it, or remove the image or labels.csv")
    return [labels[name] for name in names]


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """(height, width) that all files say they have."""
    first = _header(paths[0])
    for path in paths[1:]:
        size = _header(path)
        if size != first:
            raise UserError(f"images of different sizes: {paths[0]} is {show_size(first)}, {path} is {show_size(size)}",
                            "images of one size", "crop them to one size")
    return first


def show_size(size: tuple[int, int]) -> str:
    """(height, width) as people write it: 640x480 is 640 wide."""
    return f"{size[1]}x{size[0]}"


def _header(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            if image.mode not in BYTE_MODES:
                raise UserError(f"{path} has pixels of mode {image.mode}", "8 bits a channel", "save it as 8-bit RGB")
            return image.height, image.width
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _read_file(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} can not be read as an image ({error})", "an intact image", "replace or delete the file")


def _check_pixels(array: np.ndarray, name: str) -> None:
    if array.dtype != np.uint8:
        raise _wrong_type(array, name)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(f"images in {name} have the shape {list(array.shape)}", "[N, H, W, 3]", "transpose them")


def _wrong_type(array: np.ndarray, name: str) -> UserError:
    expected, do = "uint8 pixels 0..255", "convert them: ((x + 1) * 127.5).round().clip(0, 255) from -1..1"
    if np.issubdtype(array.dtype, np.floating) and array.size:
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            return UserError(f"NaN or infinity in image {bad.argmax()} of {name}", expected, "sample again")
        return UserError(f"{array.dtype} pixels in {array.min():.3g}..{array.max():.3g} in {name}", expected, do)
    return UserError(f"{array.dtype} pixels in {name}", expected, do)
