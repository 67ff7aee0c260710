"""Are samples copies of training images? The nearest training image of each, by pixels and by features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics.precision_recall import nearest

PIXELS, SIDE = "pixels", 16
SHARE = 0.01  # of real images that are as near to another real one as what is called a near-copy
MOST_SAMPLES, MOST_REAL = 10_000, 2_000  # how many are looked at, evenly spaced


def pixel_extractor(device: torch.device) -> Extractor:
    """Images averaged to 16x16 pixels as features, so that pixels are compared in the same pass as features."""

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
    """The nearest training image of each sample looked at.

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
        """Share of the samples that are as near to a training image as only 1% of training images are to another."""
        return float((self.distances <= self.threshold).double().mean())


@dataclass(frozen=True)
class TrainingImages:
    """Images that samples may have been copied from.

    Args:
        values: features [M, D] by network, on rank 0.
    """

    images: ImageSet
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Memorisation:
    """What the check found.

    Args:
        samples: [n] int64, which samples were looked at.
        training: the images they were compared with.
        likenesses: one for each measure.
    """

    samples: Tensor
    training: ImageSet
    likenesses: list[Likeness]


def check(
    samples: dict[str, Tensor], shown: Sequence[int], training: TrainingImages, device: torch.device
) -> Memorisation:
    """Find the nearest training image of the samples: of all, or of many and those in pictures.

    Args:
        samples: features [N, D] by network; `shown`: indices of samples in pictures.
    """
    count = len(next(iter(samples.values())))
    chosen = torch.cat(
        [evenly(count, MOST_SAMPLES), torch.tensor(shown, dtype=torch.int64)]
    ).unique()
    found = [
        likeness(samples[name][chosen], values, name, device)
        for name, values in training.values.items()
    ]
    return Memorisation(chosen, training.images, found)


def likeness(samples: Tensor, training: Tensor, by: str, device: torch.device) -> Likeness:
    """Compare samples [n, D] with training images [M, D]; M is 2 or more."""
    distances, indices = nearest(samples, training, device)
    real = evenly(len(training), MOST_REAL)
    apart, _ = nearest(training[real], training, device, skip=real)
    return Likeness(by, indices, distances, float(apart.quantile(SHARE)))


def evenly(count: int, most: int) -> Tensor:
    """Indices of at most `most` of `count` images, evenly spaced."""
    return (
        torch.arange(count)
        if count <= most
        else torch.linspace(0, count - 1, most, dtype=torch.float64).long()
    )
