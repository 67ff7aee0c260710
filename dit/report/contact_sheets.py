"""Pictures of samples: a grid by class, and samples above their nearest training images."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize

from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics.memorisation import Memorisation, evenly
from dit.utils import pictures

CLASSES = 10  # of a grid
COLUMNS = 10
WIDTH = 900  # pixels of a grid
CELL = 128  # pixels of an image on a page: full-size photographs would make it many megabytes
BESIDE = 6, 4  # samples, and real images, of a class side by side
BREAK = 24  # pixels between samples and real images
CLOSEST = 10  # samples that are shown as most like a training image
THUMBNAIL = 64  # pixels


def by_class(samples: ImageSet) -> tuple[list[str], list[list[int]]]:
    """Return names of classes, spread over all, and the indices of the first samples of each.

    Without labels there are no names, and rows of the first samples.
    """
    scale = pictures.fitting_scale(max(samples.size))
    columns = max(1, min(COLUMNS, WIDTH // (samples.size[1] * scale)))
    if samples.labels is None:
        columns = min(columns, len(samples))
        rows = min(columns, len(samples) // columns)
        shown = [*range(rows * columns)]
        return [], [shown[first : first + columns] for first in shown[::columns]]

    indices: dict[str, list[int]] = {}
    for i, label in enumerate(samples.labels):
        indices.setdefault(label, []).append(i)

    names = pictures.spread(sorted(indices, key=_class_order), CLASSES)
    if len(names) > 1:
        # all rows are as long as that of the rarest class
        columns = min(columns, *(len(indices[name]) for name in names))
    return names, [indices[name][:columns] for name in names]


def _class_order(name: str) -> tuple[bool, int, str]:
    """Sort numbers by value, before other names."""
    if name.isdigit():
        return False, int(name), name
    return True, 0, name


def draw_grid(samples: ImageSet, largest: int | None = None) -> Image.Image:
    """Draw the samples of `by_class`, a row for each class, shrunk to at most `largest` pixels."""
    names, rows = by_class(samples)
    shown = samples.stack([i for row in rows for i in row])
    if largest is not None:
        shown = shrink(shown, largest)
    scale = pictures.fitting_scale(max(shown.shape[-2:]))
    return pictures.grid(shown, names or None, len(rows[0]), scale)


def draw_beside(samples: ImageSet, real: ImageSet) -> Image.Image:
    """Draw the first samples of each class on the left, real images of it on the right.

    Without labels on both sides, any real images are on the right.
    """
    names, rows = by_class(samples)
    left = min(BESIDE[0], len(rows[0]))
    places = _places_by_class(real, names) or [evenly(len(real), len(rows) * BESIDE[1]).tolist()]
    if len(places) < len(rows):
        places = [places[0][i :: len(rows)] for i in range(len(rows))]
    right = min(BESIDE[1], max(len(row) for row in places))

    ours = samples.stack([i for row in rows for i in row[:left]])
    theirs = torch.full((len(rows), right, *ours.shape[1:]), 255, dtype=torch.uint8)
    for row, indices in zip(theirs, places, strict=True):
        for cell, index in zip(row, indices, strict=False):
            cell.copy_(real.read(index))
    images = [shrink(part, CELL) for part in (ours, theirs.flatten(0, 1))]
    scale = pictures.fitting_scale(max(images[0].shape[-2:]))

    headings = ["samples", *[""] * (left - 1)], ["real", *[""] * (right - 1)]
    sheets = [
        pictures.grid(images[0], names or None, left, scale, headings=headings[0]),
        pictures.grid(images[1], None, right, scale, headings=headings[1]),
    ]
    return _side_by_side(sheets)


def _places_by_class(real: ImageSet, names: Sequence[str]) -> list[list[int]]:
    """Return the first real images of each class; nothing if one has none, or without labels."""
    labels = real.labels or []
    places = [[i for i, label in enumerate(labels) if label == name] for name in names]
    return [row[: BESIDE[1]] for row in places] if all(places) else []


def _side_by_side(sheets: Sequence[Image.Image]) -> Image.Image:
    width = sum(sheet.width for sheet in sheets) + BREAK * (len(sheets) - 1)
    joined = Image.new("RGB", (width, max(sheet.height for sheet in sheets)), pictures.PAPER)
    x = 0
    for sheet in sheets:
        # headings may be of different heights: the images are aligned at the bottom
        joined.paste(sheet, (x, joined.height - sheet.height))
        x += sheet.width + BREAK
    return joined


def draw_first(samples: ImageSet, count: int, size: int) -> Image.Image:
    """Draw the first samples in a row, shrunk or enlarged to about `size` pixels."""
    count = min(count, len(samples))
    images = shrink(samples.stack(range(count)), size)
    scale = pictures.fitting_scale(max(images.shape[-2:]), size)
    return pictures.grid(images, None, len(images), scale)


def draw_nearest(samples: ImageSet, memorisation: Memorisation) -> Image.Image:
    """Draw the samples of the grid, and below each its nearest training image by each measure."""
    names, rows = by_class(samples)
    return _draw_pairs(samples, memorisation, rows, names or ["samples"] * len(rows))


def draw_closest(samples: ImageSet, memorisation: Memorisation) -> Image.Image:
    """Draw the samples most like a training image by any measure, as `draw_nearest` does."""
    # distances of different measures compare by what each calls a near-copy
    ratios = [like.distances / max(like.threshold, 1e-12) for like in memorisation.likenesses]
    least = torch.stack(ratios).min(dim=0).values
    closest = least.argsort()[:CLOSEST]
    row = [int(sample) for sample in memorisation.samples[closest]]
    return _draw_pairs(samples, memorisation, [row], ["sample"])


def _draw_pairs(
    samples: ImageSet,
    memorisation: Memorisation,
    rows: Sequence[Sequence[int]],
    names: Sequence[str],
) -> Image.Image:
    position = {int(sample): i for i, sample in enumerate(memorisation.samples)}
    lines: list[Tensor] = []
    labels: list[str] = []
    for name, row in zip(names, rows, strict=True):
        lines.append(samples.stack(row))
        labels.append(name)
        positions = [position[i] for i in row]
        for like in memorisation.likenesses:
            nearest = [int(like.indices[i]) for i in positions]
            lines.append(memorisation.training.stack(nearest))
            labels.append(f"by {like.by}")

    images = torch.cat([shrink(line, THUMBNAIL) for line in lines])
    scale = pictures.fitting_scale(images.shape[-1])
    return pictures.grid(images, labels, len(rows[0]), scale)


def shrink(images: Tensor, largest: int) -> Tensor:
    """Return images [N, 3, H, W] uint8 with their shorter side at most `largest` pixels."""
    if min(images.shape[-2:]) <= largest:
        return images
    return resize(images, [largest], antialias=True)
