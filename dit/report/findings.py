"""From features to the report: scores, their uncertainty, classes, near-copies, figures."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.features import Extracted
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics import bootstrap
from dit.evaluation.metrics.bootstrap import Extrapolation
from dit.evaluation.metrics.compute import Score, score_names
from dit.evaluation.metrics.memorisation import (
    NEAR_COPY_SHARE,
    PIXELS,
    Memorisation,
    TrainingImages,
    find_near_copies,
)
from dit.evaluation.metrics.per_class import (
    ClassRow,
    LabelledFeatures,
    class_rows,
    classifier_accuracy,
)
from dit.evaluation.protocol import build_protocol
from dit.evaluation.references import PreparedReference, Reference, score_samples
from dit.report import contact_sheets, evaluation_page, figures
from dit.report.digit_accuracy import label_by_digit, recognise
from dit.report.evaluation_notes import note_colours, notes_on_weights
from dit.report.evaluation_page import Digits, NearCopies, Report
from dit.report.run_curves import training_figures


@dataclass(frozen=True)
class EvaluationInputs:
    """What a report is computed from; features and targets on rank 0.

    Args:
        settings: how the samples were generated, as far as that is known.
        training: the images that samples may be copies of, or why there are none.
    """

    samples: ImageSet
    settings: dict[str, Any]
    features: Extracted
    reference: Reference
    prepared: PreparedReference
    extractors: list[Extractor]
    training: TrainingImages | str


def build_report(
    given: EvaluationInputs, run: Path | None, title: str, resamples: int, device: torch.device
) -> Report:
    """Compute scores and everything beside them from features, and draw the figures.

    Args:
        run: whose training curves to show.
        resamples: of the bootstrap, 0 for none.
    """
    digits = None
    if given.reference.digits:
        # samples of captions compare with digits of labels
        given = dataclasses.replace(given, samples=label_by_digit(given.samples))
        digits = recognise(given.samples, given.settings)

    names = [extractor.name for extractor in given.extractors]
    scores = score_samples(given.features, given.prepared, names, device)
    limits, intervals = _uncertainty(given, scores, resamples)
    record = build_protocol(
        given.samples,
        given.features.digest,
        given.settings,
        given.reference,
        given.prepared.digest,
        given.extractors,
        device,
        resamples,
    )
    notes = notes_on_weights(given.extractors) + note_colours(given.extractors, given.samples)
    copies = _find_copies(given, device)
    if isinstance(copies, str):
        notes.append(f"Copies of training images were not looked for: {copies}.")

    return Report(
        title,
        scores,
        given.prepared.real_vs_real,
        record,
        intervals,
        digits,
        _class_rows(given, digits),
        limits,
        [] if isinstance(copies, str) else _near_copies(copies),
        _figures(given, limits, copies, run),
        notes,
        contact_sheets.draw_grid(given.samples),
    )


def _uncertainty(
    given: EvaluationInputs, scores: dict[str, Score], resamples: int
) -> tuple[dict[str, Extrapolation], dict[str, tuple[float, float]]]:
    """Return extrapolation and interval of every network's Fréchet distance, by its name."""
    limits: dict[str, Extrapolation] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for extractor in given.extractors:
        name, *_ = score_names(extractor.name)
        target = given.prepared.targets[extractor.name].gaussian
        values, value = given.features.networks[extractor.name].values, scores[name].value
        # a reference without images or statistics of this network has no distance
        if target is None or value is None:
            continue

        limits[name] = bootstrap.extrapolate(values, target)
        if resamples:
            intervals[name] = bootstrap.interval(values, target, value, resamples)
    return limits, intervals


def _class_rows(given: EvaluationInputs, digits: Digits | None) -> list[ClassRow]:
    """Return class by class scores in the features of the first network, where labels are known."""
    labels = given.samples.labels
    if labels is None:
        return []

    extractor, images = given.extractors[0], given.reference.images
    features = given.features.networks[extractor.name]
    real = given.prepared.targets[extractor.name].values
    reference = None
    if real is not None and images and images.labels:
        reference = LabelledFeatures(real, images.labels)

    accuracies: dict[str, float] = {}
    if digits and digits.samples:
        accuracies = digits.samples.per_class
    elif features.logits is not None and extractor.class_names:
        accuracies = classifier_accuracy(features.logits, labels, extractor.class_names)
    return class_rows(LabelledFeatures(features.values, labels), reference, accuracies)


def _find_copies(given: EvaluationInputs, device: torch.device) -> Memorisation | str:
    """Find the nearest training images by pixels and in features of the first network."""
    if isinstance(given.training, str):
        return given.training

    names = [PIXELS, given.extractors[0].name]
    samples = {name: given.features.networks[name].values for name in names}
    values = {name: given.training.values[name] for name in names}
    _, rows = contact_sheets.by_class(given.samples)
    shown = [i for row in rows for i in row]
    return find_near_copies(samples, shown, TrainingImages(given.training.images, values), device)


def _near_copies(memorisation: Memorisation) -> list[NearCopies]:
    checked, against, count = (
        len(memorisation.samples),
        memorisation.training.name,
        len(memorisation.training),
    )
    return [
        NearCopies(like.near_copies, NEAR_COPY_SHARE, checked, against, count, like.by)
        for like in memorisation.likenesses
    ]


def _figures(
    given: EvaluationInputs,
    limits: dict[str, Extrapolation],
    copies: Memorisation | str,
    run: Path | None,
) -> dict[str, dict[str, Image.Image]]:
    """Return section -> caption -> figure."""
    samples = given.samples
    drawn = {
        evaluation_page.SAMPLES: _sample_figure(samples, given.reference.images),
        evaluation_page.TRAINING: training_figures(run) if run else {},
    }
    if any(limit.limit is not None for limit in limits.values()):
        chart = figures.distance_by_size(limits)
        drawn[evaluation_page.UNCERTAINTY] = {"Distance by number of samples": chart}
    if not isinstance(copies, str):
        closest = contact_sheets.draw_closest(samples, copies)
        nearest = contact_sheets.draw_nearest(samples, copies)
        drawn[evaluation_page.MEMORISATION] = {
            "The samples most like a training image": closest,
            "Samples and their nearest training images": nearest,
        }
    return drawn


def _sample_figure(samples: ImageSet, real: ImageSet | None) -> dict[str, Image.Image]:
    """Return caption -> samples, beside real images where there are any."""
    by_class = " by class" if samples.labels else ""
    if real is None:
        return {f"Samples{by_class}": contact_sheets.draw_grid(samples, contact_sheets.CELL)}
    caption = f"Samples{by_class}, and real images on the right"
    return {caption: contact_sheets.draw_beside(samples, real)}
