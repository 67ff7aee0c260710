"""Data sets of the user's own: objects with a length and items (image, label).

An image is a PIL image, or uint8: an array [H, W, 3] or [H, W], a tensor [3, H, W] or [1, H, W].
Data sets of torchvision are such objects.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit.data.hub_datasets import HUB
from dit.data.image_files import center_crop, reading_threads, to_rgb
from dit.data.labels import Columns, Labels
from dit.data.path_patterns import IN_MEMORY
from dit.errors import UserError
from dit.utils.image_size import Size
from dit.utils.imports import import_class, is_class_name, reason

KNOWN_LABELS = ("targets", "labels")  # attributes with the label of each item, as torchvision has
SLOW = 1000  # items, of which the labels are read with a progress bar


def is_own(data: str) -> bool:
    """Return whether `--data` is MODULE:CLASS."""
    if data.startswith(HUB) or not is_class_name(data):
        return False
    return not Path(data).exists()


def load_own(data: str, image_size: Size, columns: Columns) -> "OwnImages":
    """Return the images of the data set MODULE:CLASS, which is created without arguments."""
    return OwnImages(create_own(data), data, image_size, columns)


def create_own(data: str) -> Any:
    """Return the data set MODULE:CLASS."""
    cls = import_class("--data", data, "a data set")
    try:
        return cls()
    except Exception as error:  # the user's code can fail in any way
        raise UserError(
            f"--data {data} cannot be created ({reason(error)})",
            "a class without arguments",
            "correct its __init__, or write a class in whose place it stands",
        ) from error


class OwnImages:
    """Images of such an object, converted to RGB and cropped to one size.

    Several threads read items at a time.

    Args:
        items: the object. It may have `classes`, names by id; `targets` or `labels`, the label of
            each item, which are then not asked for one by one; and `flips`, whether a mirrored
            image still belongs to its class.
        name: of the object, for messages.
    """

    notes: Sequence[str] = ()

    def __init__(self, items: Any, name: str, image_size: Size, columns: Columns):
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise UserError(
                f"data of type {type(items).__name__}" if name == IN_MEMORY else f"--data {name}",
                "an object with __len__ and __getitem__ that gives (image, label)",
                "",
            )
        self._items, self._name = items, name
        self.image_size = image_size
        self.flips = bool(getattr(items, "flips", True))
        if not len(items):
            raise UserError(f"{self} has no images", "one or more", "")
        self.labels, self.classes = self._read_labels(columns)

    def __str__(self) -> str:
        return "the data" if self._name == IN_MEMORY else f"--data {self._name}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        image, _ = self._item(index)
        try:
            return torch.from_numpy(center_crop(_to_image(image), self.image_size)).permute(2, 0, 1)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"image {index} of {self} is {_describe(image)} ({error})",
                "a PIL image, or uint8 [H, W, 3], of tensors [3, H, W]",
                "",
            ) from error

    @cached_property
    def side(self) -> int:
        """The shorter side of the first image, in pixels."""
        return min(_to_image(self._item(0)[0]).size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the labels in order."""
        digest = hashlib.sha256(f"{self._name} {self.classes}\n".encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def stamp(self, indices: Sequence[int]) -> str:
        """Return the SHA-256 over the pixels of these images."""
        digest = hashlib.sha256()
        with reading_threads() as pool:
            for pixels in pool.map(self.__getitem__, indices):
                digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()

    def _item(self, index: int) -> tuple[Any, Any]:
        """Return image and label; None is that of an item which is an image alone."""
        try:
            item = self._items[index]
        except Exception as error:  # the user's code can fail in any way
            given = f"image {index} of {self} cannot be read ({reason(error)})"
            raise UserError(given, "(image, label)", "correct its __getitem__") from error
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], item[1]
        return item, None

    def _read_labels(self, columns: Columns) -> tuple[np.ndarray, list[str]]:
        """Return class ids, int64 [N], and names of classes."""
        nothing: tuple[np.ndarray, list[str]] = np.zeros(len(self), np.int64), []
        if columns.classes == "none" and not columns.captions:
            return nothing
        given = self._known_labels()
        if given is None:
            quiet = len(self) < SLOW
            numbers = tqdm(range(len(self)), desc="labels", unit="img", disable=quiet)
            given = [self._item(index)[1] for index in numbers]
        if all(label is None for label in given) and not columns.captions:
            return nothing

        names = getattr(self._items, "classes", None)
        if names is not None and not columns.captions:
            names = [str(name) for name in names]
        meaning = Labels(columns.captions, None if columns.captions else names)
        labels = [
            meaning.check(_plain(label), f"image {index} of {self}")
            for index, label in enumerate(given)
        ]
        # a name of the data set's own list stands for its number
        classes = meaning.classes(labels)
        return meaning.to_ids(labels, classes), classes

    def _known_labels(self) -> list[Any] | None:
        # of torchvision: what items have is not what these attributes say
        if any(getattr(self._items, name, None) for name in ("target_transform", "transforms")):
            return None
        for name in KNOWN_LABELS:
            values = getattr(self._items, name, None)
            if isinstance(values, list | tuple | np.ndarray | Tensor) and len(values) == len(self):
                return list(values)
        return None


class Arrays:
    """Images and labels in memory as such an object.

    Args:
        images: uint8 [N, H, W, 3], [N, H, W] or [N, 3, H, W].
        labels: [N]; None: no classes.
    """

    def __init__(self, images: np.ndarray | Tensor, labels: Any = None):
        pixels = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
        if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):
            pixels = pixels.transpose(0, 2, 3, 1)
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
            raise UserError(
                f"images {pixels.dtype} {list(pixels.shape)}",
                "uint8 [N, H, W, 3], [N, H, W] or [N, 3, H, W]",
                "",
            )
        if labels is not None and len(labels) != len(pixels):
            raise UserError(f"{len(labels)} labels for {len(pixels)} images", "one for each", "")
        self.images, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        return self.images[index], None if self.labels is None else self.labels[index]


def _plain(label: Any) -> Any:
    """Return a number of NumPy or torch as Python's."""
    return label.item() if isinstance(label, np.generic | Tensor) and label.ndim == 0 else label


def _to_image(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, Tensor) and image.ndim == 3:
        image = image.permute(1, 2, 0).numpy()
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise TypeError("not uint8: transforms to floats are not needed here")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] == 3):
        raise ValueError("not the shape of one image")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _describe(image: Any) -> str:
    shape = getattr(image, "shape", None)
    kind = f"{getattr(image, 'dtype', '')} ".lstrip()
    return f"{kind}{list(shape)}" if shape is not None else type(image).__name__
