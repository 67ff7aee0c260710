"""Data sets that training reads, as images of an evaluation: digits, tar shards, Hugging Face's."""

from dit.config import TrainConfig
from dit.data.labels import Columns
from dit.data.sources import is_tar_or_hub_dataset, load_images
from dit.evaluation.inputs.images import ImageSet, from_data
from dit.utils.image_size import Size


def read_data_set(name: str, size: Size, trained: TrainConfig | None) -> ImageSet | None:
    """Return the images of such a data set, cropped to one size; None for any other name.

    Args:
        trained: settings of a run, whose columns hold if this is its data.
    """
    if name != "digits" and not is_tar_or_hub_dataset(name):
        return None
    return from_data(load_images(name, size, _columns(name, trained)), name)


def _columns(name: str, trained: TrainConfig | None) -> Columns:
    # labels serve the rows by class alone: without labels there are no such rows
    if trained is None or trained.data != name:
        return Columns(classes="usual")
    label = None if trained.conditioning == "text" else trained.label_column
    return Columns(image=trained.image_column, label=label, classes="usual")
