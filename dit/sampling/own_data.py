"""The latents that a run was trained on."""

from dataclasses import replace
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from dit.data.sources import dataset_exists
from dit.errors import UserError
from dit.latents.load import build_source, keep_class_order
from dit.sampling.load import LoadedRun


def training_latents(run: LoadedRun, labels: Tensor, seed: int) -> Tensor:
    """Return latents [N, C, h, w] of images of the run's own data, one of each label [N]."""
    config = run.card.config
    if not dataset_exists(config.data):
        raise UserError(
            f"the data of {run.home}, {config.data}, is not there",
            "what it was trained on",
            "bring it back, or use `dit show backward`, which needs no data",
        )
    source = build_source(replace(config, flip=False), run.autoencoder)
    keep_class_order(source, run.card.classes)
    order = np.random.default_rng(seed).permutation(len(source.labels))
    # the order repeats if there are fewer images than labels
    indices = np.resize(order, len(labels))

    if run.card.classes and source.classes:
        shuffled = source.labels[order]
        members = {label: order[shuffled == label] for label in set(labels.tolist())}
        for label, images in members.items():
            if not len(images):
                raise UserError(
                    f"no image of class {run.card.class_name(label)} in {config.data}",
                    "a class that the data has",
                    "pass other --classes: `dit info RUN --classes` counts the images of each",
                )
        turns = {label: cycle(images) for label, images in members.items()}
        indices = np.array([next(turns[label]) for label in labels.tolist()])

    # the mean of the posterior: zeros for its noise
    unflipped = np.zeros(len(indices), bool)
    moments = source.read(indices, unflipped)
    noise = torch.zeros(len(indices), *run.latent_shape)
    return run.autoencoder.draw(moments, noise)
