"""Samples of the EMA during training, for its scores."""

import torch
from torch import nn

from dit.config import SamplerConfig
from dit.errors import NotFinite
from dit.evaluation.inputs.features import OnBatch, gather
from dit.evaluation.inputs.images import ImageSet, from_array
from dit.sampling.generate import generate
from dit.sampling.pipeline import build_pipeline
from dit.training.monitoring.previews import ema_run
from dit.training.session import TrainingSession


def sample_ema(
    session: TrainingSession,
    settings: SamplerConfig,
    step: int,
    average: nn.Module,
    on_batch: OnBatch,
) -> ImageSet | None:
    """Return samples with the same seeds and evenly spread classes at every step.

    Batches are the same on any number of ranks, and so is image i, bit for bit. If an image is not
    finite, on any rank, there is none.
    """
    ranks = session.ranks
    card = session.card
    run = ema_run(card, average, session.autoencoder, session.captions)
    pipeline = build_pipeline(run, settings)

    count = session.config.eval_samples
    indices = torch.arange(count)
    # class of image i: i / count of the way through the classes
    labels = torch.tensor(card.ids)[indices * len(card.ids) // count]
    batches = indices.split(settings.batch_size)
    pixels = torch.zeros(count, 3, *run.image_size, dtype=torch.uint8)
    failed = torch.zeros((), device=ranks.device)
    # ranks take turns; those without a batch in the last turn still call `on_batch`
    for first in range(0, len(batches), ranks.world):
        on_batch()
        try:
            for batch in batches[first + ranks.rank : first + ranks.rank + 1]:
                pixels[batch] = generate(pipeline, labels[batch], batch)
        except NotFinite:
            # not raised: the other ranks would wait for this one in the next collective
            failed += 1
    if ranks.sum(failed):
        return None

    gathered = gather(pixels, ranks)
    images = gathered.permute(0, 2, 3, 1).numpy()
    classes = None
    if not card.unconditional:
        classes = [card.class_name(label) for label in labels.tolist()]
    return from_array(images, f"samples of step {step}", classes)
