"""Grids of samples, some of each class."""

import torch
from PIL import Image
from torch import Tensor

from dit.sampling.generate import generate
from dit.sampling.pipeline import SamplingPipeline
from dit.utils import pictures

COLUMNS = 8  # at most, where rows are no classes


def sample_grid(pipeline: SamplingPipeline, per_class: int) -> tuple[Tensor, Tensor]:
    """Return images uint8 [N, 3, H, W] and labels int64 [N], `per_class` of each class in turn."""
    labels = torch.tensor(pipeline.classes).repeat_interleave(per_class)
    return generate(pipeline, labels, torch.arange(len(labels))), labels


def draw_grid(pipeline: SamplingPipeline, per_class: int) -> Image.Image:
    """Sample the classes of the pipeline and draw a row for each, with its name."""
    images, _ = sample_grid(pipeline, per_class)
    card = pipeline.run.card

    names = None if card.unconditional else [card.class_name(c) for c in pipeline.classes]
    columns = per_class if names else min(per_class, COLUMNS)
    longer_side = max(images.shape[-2:])
    return pictures.grid(images, names, columns, pictures.fitting_scale(longer_side))
