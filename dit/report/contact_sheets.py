"""Pictures of samples: a grid by class, and each beside the training images it is most like."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize

from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics.memorisation import Memorisation
from dit.utils import pictures

CLASSES, COLUMNS, WIDTH = 10, 10, 900  # of the grid; the last in pixels
CELL = 128  # of the grid on a page, pixels; photographs in full size make a page of many megabytes
CLOSEST, THUMBNAIL = 10, 64


def by_class(samples: ImageSet) -> tuple[list[str], list[list[int]]]:
    """Names of classes, spread over all, and the first samples of each; without labels the first samples, in rows."""
    columns = max(
        1, min(COLUMNS, WIDTH // (samples.size[1] * pictures.fitting_scale(max(samples.size))))
    )
    if samples.labels is None:
        columns = min(columns, len(samples))
        rows = min(columns, len(samples) // columns)
        return [], [list(range(r * columns, (r + 1) * columns)) for r in range(rows)]
    places: dict[str, list[int]] = {}
    for i, label in enumerate(samples.labels):
        places.setdefault(label, []).append(i)
    ordered = sorted(
        places, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)
    )
    names = pictures.spread(ordered, CLASSES)
    columns = min(columns, *(len(places[name]) for name in names)) if len(names) > 1 else columns
    return names, [places[name][:columns] for name in names]


def draw_grid(samples: ImageSet, largest: int | None = None) -> Image.Image:
    """The samples of `by_class`, a row for each class; those larger than `largest` pixels are brought down to it."""
    names, rows = by_class(samples)
    shown = samples.stack([i for row in rows for i in row])
    shown = shown if largest is None else bring_down(shown, largest)
    return pictures.grid(
        shown, names or None, len(rows[0]), pictures.fitting_scale(max(shown.shape[-2:]))
    )


def draw_nearest(samples: ImageSet, found: Memorisation) -> Image.Image:
    """Every sample of the grid, and under it the training image nearest to it by each measure."""
    names, rows = by_class(samples)
    place = {int(sample): i for i, sample in enumerate(found.samples)}
    lines: list[Tensor] = []
    labels: list[str] = []
    for r, row in enumerate(rows):
        lines += _with_nearest(samples, found, row, place)
        labels += [
            names[r] if names else "samples",
            *(f"by {likeness.by}" for likeness in found.likenesses),
        ]
    return pictures.grid(
        torch.cat(lines), labels, len(rows[0]), pictures.fitting_scale(lines[0].shape[-1])
    )


def draw_closest(samples: ImageSet, found: Memorisation) -> Image.Image:
    """The samples most like a training image, by any measure, in the manner of `draw_nearest`."""
    ratio = torch.stack(
        [likeness.distances / max(likeness.threshold, 1e-12) for likeness in found.likenesses]
    )
    chosen = ratio.min(dim=0).values.argsort()[:CLOSEST].tolist()
    place = {int(sample): i for i, sample in enumerate(found.samples)}
    shown = [int(found.samples[i]) for i in chosen]
    labels = ["sample", *(f"by {likeness.by}" for likeness in found.likenesses)]
    lines = torch.cat(_with_nearest(samples, found, shown, place))
    return pictures.grid(lines, labels, len(shown), pictures.fitting_scale(lines.shape[-1]))


def _with_nearest(
    samples: ImageSet, found: Memorisation, shown: Sequence[int], place: dict[int, int]
) -> list[Tensor]:
    nearest = [[int(likeness.indices[place[i]]) for i in shown] for likeness in found.likenesses]
    return [
        bring_down(images, THUMBNAIL)
        for images in (samples.stack(shown), *map(found.training.stack, nearest))
    ]


def bring_down(images: Tensor, largest: int) -> Tensor:
    """Images [n, 3, h, w] uint8, their shorter side brought down to so many pixels where it is larger."""
    return resize(images, [largest], antialias=True) if min(images.shape[-2:]) > largest else images
