"""Data sets that training reads, as images of an evaluation: digits, tar shards, Hugging Face's."""

from dit.config import TrainConfig
from dit.data.labels import Columns
from dit.data.sources import is_tar_or_hub_dataset, load_images
from dit.errors import UserError
from dit.evaluation.inputs.images import ImageSet, from_data
from dit.utils.image_size import Size


def read_data_set(
    name: str, size: Size | None, trained: TrainConfig | None = None, labelled: bool = True
) -> ImageSet | None:
    """Return the images of such a data set, cropped to one size; None for any other name.

    Args:
        trained: settings of a run, whose columns hold if this is its data.
        labelled: whether to read labels.
    """
    if name != "digits" and not is_tar_or_hub_dataset(name):
        return None
    if size is None:
        raise UserError(
            f"--data {name} without --image-size",
            "the size to crop its images to",
            "pass --image-size",
        )
    columns = _columns(name, trained) if labelled else Columns(classes="none")
    return from_data(load_images(name, size, columns), name)


def _columns(name: str, trained: TrainConfig | None) -> Columns:
    # labels serve the rows by class alone: without labels there are no such rows
    if trained is None or trained.data != name:
        return Columns(classes="usual")
    label = None if trained.conditioning == "text" else trained.label_column
    return Columns(image=trained.image_column, label=label, classes="usual")
