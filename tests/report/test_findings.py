"""Findings: every network's numbers are of its own features, and the report says which."""

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
from dit.evaluation.references import Reference, prepare
from dit.report import findings as module
from dit.report.findings import Comparison, build_report

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
    return Extractor(
        lambda images: Outputs(images[:, 0, 1:].flatten(1)[:, :5] / 10),
        "wide",
        "w.pth",
        "b" * 64,
        "none",
        CPU,
        (5, 0, 0),
    )


def pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


REAL = from_array(pixels(60, 0), "real", ["cat", "dog", "owl"] * 20)


def made(
    networks=(narrow, wide),
    array=None,
    labels=LABELS,
    reference=None,
    training="not known",
    settings=None,
    count=None,
):
    """Everything that findings are made from, of images in memory; a floor where `count` is given."""
    networks = [network() for network in networks]
    eyes = [*networks, pixel_extractor(CPU)]
    samples = from_array(pixels(COUNT, 1) if array is None else array, "samples", labels)
    reference = reference or Reference("real", REAL, None)
    standard = prepare(reference, eyes, [n.name for n in networks], count, 16, Ranks(), False)
    found = extract(samples, eyes, 16, Ranks(), "features of samples")
    if training == "reference":
        training = TrainingImages(
            REAL, {name: target.values for name, target in standard.targets.items()}
        )
    return Comparison(samples, settings or {}, found, reference, standard, networks, training)


def report(comparison, resamples=0):
    return build_report(comparison, None, "Title", resamples, CPU)


@pytest.fixture(scope="module")
def both():
    comparison = made(settings={"steps": 20}, count=15)
    return comparison, report(comparison, RESAMPLES)


# -- scores and how sure they are --------------------------------------------------------------------------------


def test_every_network_has_its_own_scores_and_floor(both):
    comparison, found = both
    for name in ("narrow", "wide"):
        target, values = comparison.standard.targets[name], comparison.found.networks[name].values
        assert found.scores[f"FD({name})"].value == pytest.approx(
            frechet(fit(values), fit(target.values)), rel=1e-9
        )
    assert found.scores["FD(wide)"].value > 10 * found.scores["FD(narrow)"].value
    assert found.floor == comparison.standard.real_vs_real
    assert {"FD(narrow)", "FD(wide)"} <= set(found.floor)


def test_every_network_has_the_interval_of_its_own_features(both):
    comparison, found = both
    assert list(found.intervals) == ["FD(narrow)", "FD(wide)"]
    reaches = {}
    for name in ("narrow", "wide"):
        values, target = (
            comparison.found.networks[name].values,
            comparison.standard.targets[name].gaussian,
        )
        reach = 1.96 * np.std(bootstrap(values, target, RESAMPLES), ddof=1)
        value = found.scores[f"FD({name})"].value
        expected = max(0, value - reach), value + reach
        assert found.intervals[f"FD({name})"] == pytest.approx(expected, rel=1e-6)
        reaches[name] = reach
    assert reaches["wide"] > 10 * reaches["narrow"]


def test_every_network_has_the_limit_of_its_own_distances(both):
    _, found = both
    assert [limit.name for limit in found.uncertainty] == ["FD(narrow)", "FD(wide)"]
    for limit in found.uncertainty:
        assert limit.sizes == [120, 60, 40, 30, 24]
        assert limit.distances[0] == pytest.approx(
            found.scores[limit.name].value, rel=1e-9
        )  # of all samples
        assert limit.limit < limit.distances[0] < limit.distances[-1]
    assert list(found.figures["Uncertainty"]) == ["Distance by number of samples"]


def test_without_resamples_there_are_limits_but_no_intervals():
    found = report(made([narrow]))
    assert found.intervals == {}
    assert [limit.name for limit in found.uncertainty] == ["FD(narrow)"]
    assert found.protocol["scores"]["bootstrap resamples"] == 0


def test_a_network_without_a_gaussian_of_the_reference_has_neither(tmp_path):
    rows = torch.from_numpy(np.random.default_rng(5).normal(size=(30, 5)))
    file = Statistics(tmp_path / "s.npz", {"wide": Moments((rows.mean(0), rows.T.cov()))})
    found = report(made(reference=Reference("s.npz", None, file)), RESAMPLES)
    assert list(found.intervals) == ["FD(wide)"]
    assert [limit.name for limit in found.uncertainty] == ["FD(wide)"]
    assert found.scores["FD(narrow)"].value is None
    assert [row.reference for row in found.classes] == [None, None]


def test_too_few_samples_for_a_limit_draw_none():
    found = report(made([wide], pixels(12, 1), LABELS[:12]))
    (limit,) = found.uncertainty
    assert limit.limit is None
    assert limit.reason.endswith("samples for 5 features, has 12")
    assert "Uncertainty" not in found.figures


# -- the record --------------------------------------------------------------------------------------------------


def test_record_is_of_this_comparison(both):
    comparison, found = both
    assert found.title == "Title"
    record = found.protocol
    assert record["samples"]["pixels_sha256"] == comparison.found.digest
    assert record["reference"]["sha256"] == comparison.standard.digest
    assert len({comparison.found.digest, comparison.standard.digest}) == 2
    assert record["sampling"]["steps"] == 20
    assert [name for name in record if name.startswith("features")] == [
        "features (narrow)",
        "features (wide)",
    ]
    assert record["scores"]["bootstrap resamples"] == RESAMPLES


def test_inception_of_other_weights_is_noted():
    def inception(checksum):
        return lambda: dataclasses.replace(narrow(), name=INCEPTION, checksum=checksum)

    other, published = (
        report(made([inception(sha)])).notes for sha in ("a" * 64, INCEPTION_SHA256)
    )
    assert [
        note for note in other if "are not the published ones (SHA-256 aaaaaaaa)" in note
    ] == other[:-1]
    assert (len(other), len(published)) == (2, 1)


# -- class by class ----------------------------------------------------------------------------------------------


def test_classes_are_compared_in_the_features_of_the_first_network(both):
    comparison, found = both
    values, real = (
        comparison.found.networks["narrow"].values,
        comparison.standard.targets["narrow"].values,
    )
    assert [(row.label, row.samples, row.reference) for row in found.classes] == [
        ("cat", 60, 20),
        ("dog", 60, 20),
    ]
    for i, row in enumerate(found.classes):
        assert row.fd == pytest.approx(frechet(fit(values[i::2]), fit(real[i::3])), rel=1e-6)


def test_accuracy_of_classes_is_the_classifiers():
    array = np.full((COUNT, 4, 4, 3), 200, dtype=np.uint8)  # all light, so dogs ...
    array[:10:2] = 50  # ... but five cats
    array += pixels(COUNT, 1) // 8
    found = module._class_rows(made([narrow, wide], array), None)
    assert {row.label: row.accuracy for row in found} == {"cat": pytest.approx(5 / 60), "dog": 1.0}
    assert [row.accuracy for row in module._class_rows(made([wide, narrow], array), None)] == [
        None,
        None,
    ]
    strangers = module._class_rows(made([narrow], array, ["cat", "cow"] * 60), None)
    assert [(row.label, row.accuracy, row.reference) for row in strangers] == [
        ("cat", None, 20),
        ("cow", None, 0),
    ]


def test_without_labels_there_are_no_classes():
    assert report(made([narrow], labels=None)).classes == []


def test_only_digits_are_recognised_and_only_where_it_is_known_which(both):
    assert both[1].digits is None  # the reference is something else
    unknown, strange = (
        module._recognise(from_array(pixels(2, 0), "x", labels)) for labels in (None, ["7", "cat"])
    )
    assert "the samples have no labels" in unknown.reason
    assert strange.reason == "label 'cat' is no digit from 0 to 9"
    assert unknown.found is strange.found is unknown.floor is None


def test_captions_of_digits_are_digits():
    known, unknown = (
        module._digits_by_name(from_array(pixels(2, 0), "x", labels)).labels
        for labels in (["an eight", "7"], None)
    )
    assert (known, unknown) == (["8", "7"], None)
    strange = from_array(pixels(2, 0), "x", ["a seven", "a cat"])
    assert (
        module._recognise(module._digits_by_name(strange)).reason
        == "label 'a cat' is no digit from 0 to 9"
    )


# -- copies ------------------------------------------------------------------------------------------------------


def test_copies_are_counted_by_pixels_and_by_the_first_network():
    array = pixels(COUNT, 1)
    array[:30] = pixels(60, 0)[:30]  # a quarter
    comparison = made(array=array, training="reference")
    found = report(comparison)
    assert [like.by for like in found.memorisation] == [PIXELS, "narrow"]
    for like in found.memorisation:
        samples, real = (
            comparison.found.networks[like.by].values,
            comparison.standard.targets[like.by].values,
        )
        threshold = torch.cdist(real, real).fill_diagonal_(torch.inf).min(1).values.quantile(0.01)
        assert like.share == pytest.approx(
            (torch.cdist(samples, real).min(1).values <= threshold).double().mean()
        )
        assert like.share >= 0.25
        assert (like.real_share, like.checked, like.against, like.count) == (
            0.01,
            COUNT,
            "real",
            60,
        )
    assert found.notes == []
    assert len(found.figures["Memorisation"]) == 2


def test_why_copies_were_not_looked_for_is_told(both):
    _, found = both
    assert found.memorisation == []
    assert found.notes == ["Copies of training images were not looked for: not known."]
    assert "Memorisation" not in found.figures
