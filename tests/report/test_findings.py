"""From features to the report: every network's numbers are of its own features."""

import dataclasses

import numpy as np
import pytest
import torch

from dit.distributed.ranks import Ranks
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.extractors.inception import INCEPTION, INCEPTION_SHA256
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import from_array
from dit.evaluation.inputs.statistics import Moments, Statistics
from dit.evaluation.metrics.bootstrap import bootstrap
from dit.evaluation.metrics.frechet import fit, frechet
from dit.evaluation.metrics.memorisation import PIXELS, TrainingImages, pixel_extractor
from dit.evaluation.references import Reference, prepare_reference
from dit.report import findings
from dit.report.digit_accuracy import label_by_digit, recognise
from dit.report.findings import EvaluationInputs, build_report

CPU = torch.device("cpu")
COUNT, RESAMPLES = 120, 8
LABELS = ["cat", "dog"] * (COUNT // 2)


def narrow():
    """Three values an image, and a classifier that sees cats in the dark and dogs in the light."""

    def network(images):
        light = images.float().mean((1, 2, 3)) - 127.5
        return Outputs(images[:, :, 0, 0] / 100, torch.stack([-light, light], 1))

    return Extractor(network, "narrow", "n.pth", "a" * 64, "none", CPU, (3, 2, 0), ("cat", "dog"))


def wide():
    """Five values an image, ten times as large."""

    def network(images):
        return Outputs(images[:, 0, 1:].flatten(1)[:, :5] / 10)

    return Extractor(network, "wide", "w.pth", "b" * 64, "none", CPU, (5, 0, 0))


def pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


REAL = from_array(pixels(60, 0), "real", ["cat", "dog", "owl"] * 20)


def compare(
    networks=(narrow, wide),
    array=None,
    labels=LABELS,
    reference=None,
    training="not known",
    settings=None,
    count=None,
):
    """What a report is computed from, of images in memory; with `count`, real vs. real too."""
    extractors = [network() for network in networks]
    every = [*extractors, pixel_extractor(CPU)]
    samples = from_array(pixels(COUNT, 1) if array is None else array, "samples", labels)
    reference = reference or Reference("real", REAL, None)
    names = [extractor.name for extractor in extractors]
    prepared = prepare_reference(reference, every, names, count, 16, Ranks(), False)
    features = extract(samples, every, 16, Ranks(), "features of samples")
    if training == "reference":
        values = {name: target.values for name, target in prepared.targets.items()}
        training = TrainingImages(REAL, values)
    return EvaluationInputs(
        samples, settings or {}, features, reference, prepared, extractors, training
    )


def report(comparison, resamples=0):
    return build_report(comparison, None, "Title", resamples, CPU)


def features_of(comparison, name):
    """Features of samples and of the reference."""
    return comparison.features.networks[name].values, comparison.prepared.targets[name].values


@pytest.fixture(scope="module")
def both():
    comparison = compare(settings={"steps": 20}, count=15)
    return comparison, report(comparison, RESAMPLES)


# -- scores and their uncertainty ------------------------------------------------------------------


def test_every_network_has_its_own_scores_and_range_of_real_images(both):
    comparison, found = both
    for name in ("narrow", "wide"):
        samples, real = features_of(comparison, name)
        expected = frechet(fit(samples), fit(real))
        assert found.scores[f"FD({name})"].value == pytest.approx(expected, rel=1e-9)
    assert found.scores["FD(wide)"].value > 10 * found.scores["FD(narrow)"].value
    assert found.real_vs_real == comparison.prepared.real_vs_real
    assert {"FD(narrow)", "FD(wide)"} <= set(found.real_vs_real)


def test_every_network_has_the_interval_of_its_own_features(both):
    comparison, found = both
    assert list(found.intervals) == ["FD(narrow)", "FD(wide)"]
    ci95 = {}
    for name in ("narrow", "wide"):
        samples, target = features_of(comparison, name)[0], comparison.prepared.targets[name]
        replicates = bootstrap(samples, target.gaussian, RESAMPLES)
        ci95[name] = 1.96 * np.std(replicates, ddof=1)
        value = found.scores[f"FD({name})"].value
        expected = max(0, value - ci95[name]), value + ci95[name]
        assert found.intervals[f"FD({name})"] == pytest.approx(expected, rel=1e-6)
    assert ci95["wide"] > 10 * ci95["narrow"]


def test_every_network_has_the_limit_of_its_own_distances(both):
    _, found = both
    assert list(found.uncertainty) == ["FD(narrow)", "FD(wide)"]
    for name, limit in found.uncertainty.items():
        assert limit.sizes == [120, 60, 40, 30, 24]
        of_all_samples = pytest.approx(found.scores[name].value, rel=1e-9)
        assert limit.distances[0] == of_all_samples
        assert limit.limit < limit.distances[0] < limit.distances[-1]
    assert list(found.figures["Uncertainty"]) == ["Distance by number of samples"]


def test_without_resamples_there_are_limits_but_no_intervals():
    found = report(compare([narrow]))
    assert found.intervals == {}
    assert list(found.uncertainty) == ["FD(narrow)"]
    assert found.protocol["scores"]["bootstrap resamples"] == 0


def test_a_network_without_a_gaussian_of_the_reference_has_neither(tmp_path):
    rows = torch.from_numpy(np.random.default_rng(5).normal(size=(30, 5)))
    file = Statistics(tmp_path / "s.npz", {"wide": Moments((rows.mean(0), rows.T.cov()))})
    found = report(compare(reference=Reference("s.npz", None, file)), RESAMPLES)
    assert list(found.intervals) == list(found.uncertainty) == ["FD(wide)"]
    assert found.scores["FD(narrow)"].value is None
    assert [row.reference for row in found.classes] == [None, None]


def test_too_few_samples_for_a_limit_draw_none():
    found = report(compare([wide], pixels(12, 1), LABELS[:12]))
    limit = found.uncertainty["FD(wide)"]
    assert limit.limit is None
    assert limit.reason.endswith("samples for 5 features, has 12")
    assert "Uncertainty" not in found.figures


# -- the record ------------------------------------------------------------------------------------


def test_record_is_of_this_comparison(both):
    comparison, found = both
    assert found.title == "Title"
    record = found.protocol
    assert record["samples"]["pixels_sha256"] == comparison.features.digest
    assert record["reference"]["sha256"] == comparison.prepared.digest
    assert comparison.features.digest != comparison.prepared.digest
    assert record["sampling"]["steps"] == 20
    features = [name for name in record if name.startswith("features")]
    assert features == ["features (narrow)", "features (wide)"]
    assert record["scores"]["bootstrap resamples"] == RESAMPLES


@pytest.mark.parametrize(("checksum", "noted"), [("a" * 64, True), (INCEPTION_SHA256, False)])
def test_inception_of_other_weights_is_noted(checksum, noted):
    def inception():
        return dataclasses.replace(narrow(), name=INCEPTION, checksum=checksum)

    notes = report(compare([inception])).notes
    of_weights = [note for note in notes if "not the published ones (SHA-256 aaaaaaaa)" in note]
    assert (len(of_weights), len(notes)) == (noted, 1 + noted)


# -- class by class --------------------------------------------------------------------------------


def test_classes_are_compared_in_the_features_of_the_first_network(both):
    comparison, found = both
    samples, real = features_of(comparison, "narrow")
    counts = [(row.label, row.samples, row.reference) for row in found.classes]
    assert counts == [("cat", 60, 20), ("dog", 60, 20)]
    for i, row in enumerate(found.classes):
        assert row.fd == pytest.approx(frechet(fit(samples[i::2]), fit(real[i::3])), rel=1e-6)


def test_accuracy_of_classes_is_that_of_the_classifier():
    array = np.full((COUNT, 4, 4, 3), 200, dtype=np.uint8)  # all light, so dogs ...
    array[:10:2] = 50  # ... but five cats
    array += pixels(COUNT, 1) // 8

    def accuracies(networks, labels=LABELS):
        rows = findings._class_rows(compare(networks, array, labels), None)
        return {row.label: (row.accuracy, row.reference) for row in rows}

    assert accuracies([narrow, wide]) == {"cat": (pytest.approx(5 / 60), 20), "dog": (1.0, 20)}
    assert accuracies([wide, narrow]) == {"cat": (None, 20), "dog": (None, 20)}
    unknown = accuracies([narrow], ["cat", "cow"] * 60)
    assert unknown == {"cat": (None, 20), "cow": (None, 0)}


def test_without_labels_there_are_no_classes():
    assert report(compare([narrow], labels=None)).classes == []


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (None, "the samples have no labels (labels.csv, class folders, or arr_1)"),
        (["7", "cat"], "label 'cat' is no digit from 0 to 9"),
        (["a seven", "a cat"], "label 'a cat' is no digit from 0 to 9"),
    ],
)
def test_digits_are_recognised_only_where_labels_are_digits(both, labels, reason):
    assert both[1].digits is None  # the reference is something else
    found = recognise(label_by_digit(from_array(pixels(2, 0), "x", labels)), {})
    assert (found.samples, found.real, found.reason) == (None, None, reason)


def test_captions_of_digits_are_digits():
    samples = from_array(pixels(2, 0), "x", ["an eight", "7"])
    assert label_by_digit(samples).labels == ["8", "7"]


# -- copies ----------------------------------------------------------------------------------------


def test_copies_are_counted_by_pixels_and_by_the_first_network():
    array = pixels(COUNT, 1)
    array[:30] = pixels(60, 0)[:30]  # a quarter
    comparison = compare(array=array, training="reference")
    found = report(comparison)
    assert [copies.by for copies in found.memorisation] == [PIXELS, "narrow"]
    for copies in found.memorisation:
        samples, real = features_of(comparison, copies.by)
        threshold = torch.cdist(real, real).fill_diagonal_(torch.inf).min(1).values.quantile(0.01)
        near = torch.cdist(samples, real).min(1).values <= threshold
        assert copies.share == pytest.approx(near.double().mean())
        assert copies.share >= 0.25
        assert (copies.real_share, copies.checked) == (0.01, COUNT)
        assert (copies.against, copies.count) == ("real", 60)
    assert found.notes == []
    assert len(found.figures["Memorisation"]) == 2


def test_why_copies_were_not_looked_for_is_noted(both):
    _, found = both
    assert found.memorisation == []
    assert found.notes == ["Copies of training images were not looked for: not known."]
    assert "Memorisation" not in found.figures
