"""From features to the report: scores, how sure they are, class by class, copies, pictures."""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dit.data.captions import DIGIT_CAPTIONS
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.inception import INCEPTION, INCEPTION_SHA256
from dit.evaluation.inputs.features import Extracted
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics import bootstrap as uncertainty
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics.compute import Score
from dit.evaluation.metrics.memorisation import PIXELS, SHARE, Memorisation, TrainingImages, check
from dit.evaluation.metrics.per_class import (
    ClassRow,
    Labelled,
    class_rows,
    classifier_accuracy,
    svm_accuracy,
    svm_floor,
)
from dit.evaluation.protocol import protocol
from dit.evaluation.references import PreparedReference, Reference, score
from dit.evaluation.samples import without_classes
from dit.report import contact_sheets, figures
from dit.report import evaluation_page as report
from dit.report.evaluation_page import Extrapolated, Report
from dit.runs.metrics import read_metrics
from dit.utils import pictures


@dataclass(frozen=True)
class Comparison:
    """All that a report is made from; features and targets on rank 0.

    Args:
        settings: how the samples were made, as far as it is known.
        training: what samples may be copies of, or why that is not looked at.
    """

    samples: ImageSet
    settings: dict[str, Any]
    found: Extracted
    reference: Reference
    standard: PreparedReference
    networks: list[Extractor]
    training: TrainingImages | str


def build_report(
    made: Comparison, run: Path | None, title: str, resamples: int, device: torch.device
) -> Report:
    """Everything that is computed from features, and the pictures.

    Args:
        run: whose training curves to show; `resamples`: of the bootstrap, 0 for none.
    """
    if made.reference.digits:
        made = dataclasses.replace(made, samples=_digits_by_name(made.samples))
    scores = score(made.found, made.standard, [n.name for n in made.networks], device)
    digits = (
        _recognise(made.samples)
        if made.reference.digits and not without_classes(made.settings)
        else None
    )
    limits, intervals = _uncertainty(made, scores, resamples)
    copies = _copies(made, device)
    record = protocol(
        made.samples,
        made.found.digest,
        made.settings,
        made.reference,
        made.standard.digest,
        made.networks,
        device,
        resamples,
    )
    notes = [
        f"The weights of {n.name} are not the published ones (SHA-256 {n.checksum[:8]}): no published FID is "
        "of them."
        for n in made.networks
        if n.name == INCEPTION and not n.checksum.startswith(INCEPTION_SHA256)
    ]
    if isinstance(copies, str):
        notes.append(f"Copies of training images were not looked for: {copies}.")
    return Report(
        title,
        scores,
        made.standard.real_vs_real,
        record,
        intervals,
        digits,
        _class_rows(made, digits),
        limits,
        [] if isinstance(copies, str) else _near_copies(copies),
        _figures(made, limits, copies, run),
        notes,
    )


def _uncertainty(
    made: Comparison, scores: dict[str, Score], resamples: int
) -> tuple[list[Extrapolated], dict[str, tuple[float, float]]]:
    """Of every network's Fréchet distance: its extrapolation, and its interval by the name of the score."""
    limits: list[Extrapolated] = []
    intervals: dict[str, tuple[float, float]] = {}
    for network in made.networks:
        name, *_ = metrics.score_names(network.name)
        target, values = (
            made.standard.targets[network.name].gaussian,
            made.found.networks[network.name].values,
        )
        value = scores[name].value
        if target is None or value is None:
            continue
        found = uncertainty.extrapolate(values, target)
        limits.append(Extrapolated(name, **dataclasses.asdict(found)))
        if resamples:
            intervals[name] = uncertainty.interval(
                value, uncertainty.bootstrap(values, target, resamples)
            )
    return limits, intervals


def _digits_by_name(samples: ImageSet) -> ImageSet:
    """Samples of a caption such as `a seven` are those of digit 7."""
    names = {caption: str(digit) for digit, caption in enumerate(DIGIT_CAPTIONS)}
    labels = samples.labels and [names.get(label, label) for label in samples.labels]
    return dataclasses.replace(samples, labels=labels)


def _recognise(samples: ImageSet) -> report.Digits:
    """How many samples show the digit they should, if it is known which."""
    if samples.labels is None:
        return report.Digits(
            reason="the samples have no labels (labels.csv, class folders, or arr_1)"
        )
    strange = set(samples.labels) - {str(i) for i in range(10)}
    if strange:
        return report.Digits(reason=f"label {min(strange)!r} is no digit from 0 to 9")
    images = samples.stack(range(len(samples)))
    return report.Digits(
        svm_accuracy(images, [int(label) for label in samples.labels]), svm_floor()
    )


def _class_rows(made: Comparison, digits: report.Digits | None) -> list[ClassRow]:
    """Class by class in the features of the first network, where the samples' classes are known."""
    if made.samples.labels is None:
        return []
    network = made.networks[0]
    features, real = made.found.networks[network.name], made.standard.targets[network.name].values
    images = made.reference.images
    reference = (
        Labelled(real, images.labels) if real is not None and images and images.labels else None
    )
    recognised: dict[str, float] = {}
    if digits and digits.found:
        recognised = digits.found.per_class
    elif features.logits is not None and network.class_names:
        recognised = classifier_accuracy(features.logits, made.samples.labels, network.class_names)
    return class_rows(Labelled(features.values, made.samples.labels), reference, recognised)


def _copies(made: Comparison, device: torch.device) -> Memorisation | str:
    """The nearest training images, by pixels and by features of the first network."""
    if isinstance(made.training, str):
        return made.training
    _, rows = contact_sheets.by_class(made.samples)
    names = [PIXELS, made.networks[0].name]
    ours = {name: made.found.networks[name].values for name in names}
    real = TrainingImages(
        made.training.images, {name: made.training.values[name] for name in names}
    )
    return check(ours, [i for row in rows for i in row], real, device)


def _near_copies(found: Memorisation) -> list[report.Memorisation]:
    return [
        report.Memorisation(
            like.near_copies,
            SHARE,
            len(found.samples),
            found.training.name,
            len(found.training),
            like.by,
        )
        for like in found.likenesses
    ]


# -- pictures ----------------------------------------------------------------------------------------------------


def _figures(
    made: Comparison, limits: list[Extrapolated], copies: Memorisation | str, run: Path | None
) -> dict[str, dict[str, Image.Image]]:
    """Section -> caption -> picture."""
    caption = "Samples by class" if made.samples.labels else "Samples"
    found = {
        report.SAMPLES: {caption: contact_sheets.draw_grid(made.samples, contact_sheets.CELL)},
        report.TRAINING: _training_figures(run),
    }
    if any(one.limit is not None for one in limits):
        found[report.UNCERTAINTY] = {
            "Distance by number of samples": figures.distance_by_size(limits)
        }
    if not isinstance(copies, str):
        found[report.MEMORISATION] = {
            "The samples most like a training image": contact_sheets.draw_closest(
                made.samples, copies
            ),
            "Samples and their nearest training images": contact_sheets.draw_nearest(
                made.samples, copies
            ),
        }
    return found


def _training_figures(run: Path | None) -> dict[str, Image.Image]:
    """The run's loss, and the scores that it logged, where it has."""
    places = (run, *run.resolve().parents[:3]) if run else ()
    lines = next((found for p in places if (found := read_metrics(p / "metrics.jsonl"))), None)
    if lines is None:
        return {}
    curves = {"Loss": _drawn(pictures.loss_curve, [line for line in lines if "loss" in line])}
    if scored := [line for line in lines if "eval" in line]:
        alike = [line for line in scored if line["eval"] == scored[-1]["eval"]]
        curves["Scores of the EMA"] = _drawn(figures.training_scores, alike)
    return curves


def _drawn(
    draw: Callable[[list[dict[str, float]], Path], None], lines: list[dict[str, float]]
) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        draw(lines, Path(folder) / "drawn.png")
        with Image.open(Path(folder) / "drawn.png") as picture:
            return picture.convert("RGB")
