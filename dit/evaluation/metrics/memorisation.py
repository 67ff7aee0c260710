"""Near-copies of training images: the nearest one of each sample, by pixels and features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit.distributed.ranks import Ranks
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs.cache import extract_cached
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics.precision_recall import nearest

PIXELS, SIDE = "pixels", 16
NEAR_COPY_SHARE = 0.01  # of real images that are as near to another real one as a near-copy
MOST_SAMPLES, MOST_REAL = 10_000, 2_000  # numbers of images checked, evenly spaced


def pixel_extractor(device: torch.device) -> Extractor:
    """Return a network whose features are the image averaged to 16x16 pixels."""

    def shrink(images: Tensor) -> Outputs:
        return Outputs(F.adaptive_avg_pool2d(images.float(), SIDE).flatten(1))

    return Extractor(
        shrink,
        PIXELS,
        weights="none",
        checksum="",
        preprocessing=f"averaged to {SIDE}x{SIDE}",
        device=device,
        widths=(3 * SIDE * SIDE, 0, 0),
    )


@dataclass(frozen=True)
class Likeness:
    """The nearest training image of each sample checked.

    Args:
        by: `pixels` or the name of a feature network.
        indices, distances: [n], of the nearest training image.
        threshold: the distance within which only 1% of training images have another one.
    """

    by: str
    indices: Tensor
    distances: Tensor
    threshold: float

    @property
    def near_copies(self) -> float:
        """Share of the samples within the threshold."""
        return float((self.distances <= self.threshold).double().mean())


@dataclass(frozen=True)
class TrainingImages:
    """Images that samples may be copies of; features [M, D] by network, on rank 0."""

    images: ImageSet
    values: dict[str, Tensor]


def extract_training_images(
    images: ImageSet | str,
    known: dict[str, Tensor] | None,
    extractors: Sequence[Extractor],
    batch_size: int,
    ranks: Ranks,
    cache: bool,
) -> TrainingImages | str:
    """Return the images with their features in every network.

    Args:
        images: the images, or why there are none, which is then returned.
        known: their features, where the images are those of the reference.
    """
    if isinstance(images, str):
        return images
    if known is not None:
        return TrainingImages(images, known)
    title = "features of training images"
    networks = extract_cached(images, extractors, batch_size, ranks, title, cache).networks
    return TrainingImages(images, {name: features.values for name, features in networks.items()})


@dataclass(frozen=True)
class Memorisation:
    """Result of the check.

    Args:
        samples: [n] int64, indices of the samples checked.
        training: the images they were compared with.
        likenesses: one for each measure.
    """

    samples: Tensor
    training: ImageSet
    likenesses: list[Likeness]


def find_near_copies(
    samples: dict[str, Tensor], shown: Sequence[int], training: TrainingImages, device: torch.device
) -> Memorisation:
    """Find the nearest training image of all samples, or of many and those in pictures.

    Args:
        samples: features [N, D] by network.
        shown: indices of samples in pictures.
    """
    count = len(next(iter(samples.values())))
    # Pictures show the neighbours of their samples: these are always checked.
    spread = evenly(count, MOST_SAMPLES)
    chosen = torch.cat([spread, torch.tensor(shown, dtype=torch.int64)]).unique()
    likenesses = [
        likeness(samples[name][chosen], values, name, device)
        for name, values in training.values.items()
    ]
    return Memorisation(chosen, training.images, likenesses)


def likeness(samples: Tensor, training: Tensor, by: str, device: torch.device) -> Likeness:
    """Compare samples [n, D] with training images [M, D], M >= 2."""
    distances, indices = nearest(samples, training, device)
    # What is near is measured among real images, each without itself.
    real = evenly(len(training), MOST_REAL)
    real_distances, _ = nearest(training[real], training, device, skip=real)
    return Likeness(by, indices, distances, float(real_distances.quantile(NEAR_COPY_SHARE)))


def evenly(count: int, most: int) -> Tensor:
    """Return the indices of at most `most` of `count` images, evenly spaced."""
    if count <= most:
        return torch.arange(count)
    return torch.linspace(0, count - 1, most, dtype=torch.float64).long()
