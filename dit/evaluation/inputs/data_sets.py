"""Data sets that training reads, as images of an evaluation: digits, tar shards, Hugging Face's.

Latents stand for the images that they were made of.
"""

import dataclasses
from pathlib import Path

from dit.config import TrainConfig
from dit.data.captions import METADATA, ListedFolder
from dit.data.counts import count_of
from dit.data.labels import Classes, Columns
from dit.data.sources import (
    dataset_exists,
    is_packed,
    load_images,
    refuse_columns,
)
from dit.errors import UserError
from dit.evaluation.inputs.images import ImageSet, from_data, select
from dit.latents.shards import Encoding, read_encoding, skipped_images
from dit.utils.image_size import Size

MOVED = "pass --reference with the folder where they are now, and --crop"


def read_data_set(
    name: str,
    size: Size | None,
    trained: TrainConfig | None = None,
    labelled: bool = True,
    column: str | None = None,
) -> ImageSet | None:
    """Return the images of such a data set, cropped to one size; None for any other name.

    Args:
        trained: settings of a run, whose columns hold if this is its data.
        labelled: whether to read labels.
        column: of the images, where labels are not read.
    """
    if trained and name == trained.data and not dataset_exists(name):
        raise UserError(
            f"the images of training are no longer at {name}",
            "images to compare with",
            MOVED,
        )
    if name != "digits" and not is_packed(name):
        refuse_columns(name, Columns(image=column))
        return None
    if size is None:
        raise UserError(
            f"--data {name} without --image-size",
            "the size to crop its images to",
            "pass --image-size",
        )
    columns = _columns(name, trained) if labelled else Columns(image=column, classes="none")
    return from_data(load_images(name, size, columns), name)


def read_listed(name: str, size: Size, trained: TrainConfig) -> ImageSet | None:
    """Return the images of a folder that its metadata.jsonl lists for a run; None without one.

    The run saw no others. Labels that are captions are left out.
    """
    captions = trained.conditioning == "text"
    if not (Path(name).expanduser() / METADATA).is_file():
        return None
    classes: Classes = "none" if trained.num_classes == 0 else "usual"
    columns = Columns(captions, trained.image_column, trained.label_column, classes)
    listed = load_images(name, size, columns)
    if not isinstance(listed, ListedFolder):
        return None
    images = from_data(listed, name)
    return dataclasses.replace(images, labels=None) if captions else images


def _columns(name: str, trained: TrainConfig | None) -> Columns:
    # labels serve the rows by class alone: without labels there are no such rows
    if trained is None or trained.data != name:
        return Columns(classes="usual")
    label = None if trained.conditioning == "text" else trained.label_column
    return Columns(image=trained.image_column, label=label, classes="usual")


# -- latents ---------------------------------------------------------------------------------------


def read_encoded(root: Path, size: Size) -> ImageSet:
    """Return the images that latents were made of, without the damaged ones, cropped to one size.

    Labels that are captions are left out, for samples of captions have other ones.

    Raises:
        UserError: the latents do not say where the images are, or they are no longer there.
    """
    encoding = read_encoding(root)
    source = _find_source(root, encoding)
    # captions choose the images, too: those of metadata.jsonl, in its order
    columns = Columns(
        encoding.captions, encoding.image_column, encoding.label_column, classes="usual"
    )
    loaded = load_images(source, size, columns)
    images = from_data(loaded, source)
    if encoding.captions:
        images = dataclasses.replace(images, labels=None)

    if change := _describe_change(encoding, len(loaded), loaded.fingerprint):
        note = f"the images in {source} changed since they were encoded ({change})"
        return dataclasses.replace(images, notes=[*images.notes, note])
    skipped = set(skipped_images(root))
    return select(images, [i for i in range(len(images)) if i not in skipped])


def _find_source(root: Path, encoding: Encoding) -> str:
    """Return where the images are that latents were made of."""
    expected = "the images that were encoded"
    if encoding.data is None:
        raise UserError(
            f"the latents {root}, of an earlier version, do not say where their images are",
            expected,
            "pass --reference with their folder and --crop, or run dit encode again into the same "
            "folder: finished shards stay",
        )
    if not dataset_exists(encoding.data):
        raise UserError(
            f"the images of the latents {root} are no longer at {encoding.data}",
            expected,
            MOVED,
        )
    return encoding.data


def _describe_change(encoding: Encoding, count: int, fingerprint: str) -> str:
    if encoding.count is None:  # a stream, whose length is not known
        return ""
    if encoding.count != count:
        return f"{count_of(encoding.count, 'image')} then, {count:,} now"
    named = "other names or captions" if encoding.captions else "other names"
    return "" if encoding.fingerprint == fingerprint else named
