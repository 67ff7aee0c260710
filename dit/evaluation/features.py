"""Images in, features out: the images to score, from a folder, an .npz file or memory, and their features."""

import csv
import hashlib
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit.data.images import EXTENSIONS, Images
from dit.errors import UserError
from dit.evaluation.extractors import Extractor
from dit.files import sha256
from dit.hardware import Ranks

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


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] of features, float64: all that some references publish."""

    mean: np.ndarray
    covariance: np.ndarray
    name: str
    digest: str


@dataclass(frozen=True)
class Features:
    """What a feature network says of N images: values [N, D], logits [N, K], and a SHA-256 over all pixels."""

    values: Tensor
    logits: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.values)


# -- reading -----------------------------------------------------------------------------------------------------


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


def read_statistics(path: Path) -> Statistics | None:
    """Reference statistics `mu` [D] and `sigma` [D, D] of an .npz file; None where it has neither.

    Raises:
        UserError: one without the other, or of shapes that do not fit or with values that are not finite.
    """
    with _open_npz(path) as file:
        if not {"mu", "sigma"} & set(file.files):
            return None
        arrays = [_array(file, path, key) for key in ("mu", "sigma")]
    mean, covariance = arrays
    expected = "mu [D] and sigma [D, D], finite numbers"
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"mu {list(mean.shape)} and sigma {list(covariance.shape)} in {path}", expected,
                        "pass the statistics file of your feature network")
    if not (_is_finite(mean) and _is_finite(covariance)):
        raise UserError(f"mu or sigma in {path} is not finite", expected, "compute the statistics again")
    return Statistics(mean.astype(np.float64), covariance.astype(np.float64), str(path), sha256(path))


def _is_finite(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.number) and bool(np.isfinite(array).all())


def _read_npz(path: Path) -> ImageSet:
    with _open_npz(path) as file:
        images = _array(file, path, "arr_0")
        labels = _array(file, path, "arr_1") if "arr_1" in file.files else None
    return from_array(images, str(path), None if labels is None else labels.tolist())


def has_images(path: Path) -> bool:
    """Whether an .npz file holds images."""
    with _open_npz(path) as file:
        return "arr_0" in file.files


def _open_npz(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise ValueError("not a zip archive")
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} can not be read ({error})", "an .npz file written by numpy.savez",
                        "check the path or write the file again") from error


def _array(file: Any, path: Path, key: str) -> np.ndarray:
    if key not in file.files:
        raise UserError(f"{path} holds {', '.join(file.files) or 'nothing'}", f"an array {key}",
                        "images: arr_0 [N, H, W, 3]; statistics: mu [D] and sigma [D, D]")
    try:
        return file[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{key} in {path} can not be read ({error})", "an intact array of plain numbers",
                        "write the file again; pickled objects are never loaded") from error


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


# -- features ----------------------------------------------------------------------------------------------------


def extract(images: ImageSet, extractor: Extractor, batch_size: int, ranks: Ranks, title: str) -> Features:
    """Features of all images in order, on every rank; each rank reads and computes its part.

    Raises:
        UserError: an image can not be read, or its features are not finite; it is named.
    """
    buffers = (
        torch.zeros(len(images), extractor.width),
        torch.zeros(len(images), extractor.classes),
        torch.zeros(len(images), hashlib.sha256().digest_size, dtype=torch.uint8),
    )
    batches = -(-len(images) // batch_size)  # the same ones on any number of ranks, so that features are bitwise equal
    start, stop = (min(len(images), batches * r // ranks.world * batch_size) for r in (ranks.rank, ranks.rank + 1))
    with ThreadPoolExecutor(4) as pool, tqdm(total=stop - start, desc=title, unit="img", disable=not ranks.main) as bar:
        for first in range(start, stop, batch_size):
            part = range(first, min(first + batch_size, stop))
            pixels = torch.stack(list(pool.map(images.read, part)))
            outputs = (*extractor(pixels), _digests(pixels))
            _check_finite(outputs[0], outputs[1], first, images.name)
            for buffer, output in zip(buffers, outputs, strict=True):
                buffer[part.start : part.stop] = output
            bar.update(len(part))
    values, logits, digests = (_gather(buffer, ranks) for buffer in buffers)
    return Features(values, logits, hashlib.sha256(digests.numpy().tobytes()).hexdigest())


def _gather(buffer: Tensor, ranks: Ranks) -> Tensor:
    """The parts of all ranks, each zero elsewhere: their sum is exact."""
    return ranks.total(buffer.to(ranks.device)).cpu() if ranks.world > 1 else buffer


def _digests(pixels: Tensor) -> Tensor:
    """[B, 32] uint8: SHA-256 of each image."""
    digests = [hashlib.sha256(image.contiguous().numpy().tobytes()).digest() for image in pixels]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), -1).copy())


def _check_finite(values: Tensor, logits: Tensor, first: int, name: str) -> None:
    bad = ~(values.isfinite().all(dim=1) & logits.isfinite().all(dim=1))
    if bad.any():
        raise UserError(f"NaN in features of image {first + int(bad.int().argmax())} of {name}", "finite features",
                        "look at that image and at the weights of the feature network")
