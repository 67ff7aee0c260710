"""Scores equal torch-fidelity's own; a score that cannot be computed has a reason."""

import numpy as np
import pytest
import torch
from helpers.evaluation import CPU

from dit.data.images import Digits
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.inputs.features import Features
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics.compute import (
    Score,
    Target,
    compute_real_vs_real,
    compute_scores,
    score_names,
)
from dit.evaluation.metrics.frechet import fit, frechet, from_moments
from dit.utils.typed_json import from_json

INCEPTION = "inception-v3-compat"
IN_IMAGES = ("KID", "precision", "recall", "density", "coverage")
DIGITS = tuple(f"{name}(digits-cnn)" for name in ("FD", *IN_IMAGES, "IS"))
DIGITS += ("IS(digits-cnn) (torch-fidelity)",)


@pytest.fixture(scope="module")
def features():
    """Features of real digits, and of other digits with noise, 600 each."""
    (extractor,) = load_extractors(["digits-cnn"], [], CPU)
    images = Digits(32).images
    noise = torch.randint(-60, 61, (600, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    noisy = (images[600:1200].int() + noise).clamp(0, 255).byte()
    return Features(*extractor(images[:600])), Features(*extractor(noisy))


@pytest.fixture
def scores(features):
    real, fake = features
    return compute_scores(fake, Target.of(real), "digits-cnn", CPU)


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 10)


def normal(n, width=8, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def layers(n, seed=0):
    """Return features of a network with all layers."""
    return Features(normal(n, seed=seed), normal(n, 10, seed + 1), normal(n, 6, seed + 2))


# -- against torch-fidelity ------------------------------------------------------------------------


@pytest.mark.portable
def test_scores_equal_torch_fidelity(features, scores):
    """Its own arithmetic and defaults, on the same features in float64."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = (part.values.double() for part in features)
    logits, quiet = features[1].logits.double(), dict(verbose=False)
    statistics = [fid_features_to_statistics(values) for values in (fake, real)]
    theirs = {
        **fid_statistics_to_metric(*statistics, **quiet),
        **kid_features_to_metric(fake, real, kid_subsets=10, kid_subset_size=300, **quiet),
        **prc_features_to_metric(fake, real, **quiet),
        **isc_features_to_metric(logits, splits=1, shuffle=False),
    }
    keys = {
        "FD": "frechet_inception_distance",
        "KID": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
        "IS": "inception_score_mean",
    }
    for name, key in keys.items():
        assert scores[f"{name}(digits-cnn)"].value == pytest.approx(theirs[key], rel=1e-6), name

    kid, shuffled = scores["KID(digits-cnn)"], isc_features_to_metric(logits)
    score = scores["IS(digits-cnn) (torch-fidelity)"]
    assert kid.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)
    assert kid.deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-12)
    assert kid.note == "10 subsets of 300"
    assert score.value == pytest.approx(shuffled["inception_score_mean"], rel=1e-6)
    assert score.deviation == pytest.approx(shuffled["inception_score_std"], rel=1e-6)


# -- names -----------------------------------------------------------------------------------------


def test_only_inception_gives_fid(scores):
    assert tuple(scores) == DIGITS
    assert [score.name for score in scores.values()] == list(DIGITS)
    assert score_names(INCEPTION) == ("FID", "sFID", *IN_IMAGES, "IS", "IS (torch-fidelity)")
    assert score_names("digits-cnn") == (DIGITS[0], "sFD(digits-cnn)", *DIGITS[1:])


def test_a_network_with_all_layers_has_all_scores():
    scores = compute_scores(layers(30), Target.of(layers(40, seed=9)), INCEPTION, CPU)
    assert tuple(scores) == score_names(INCEPTION)
    assert all(score.value is not None for score in scores.values())
    lower = {name for name, score in scores.items() if score.direction == "lower"}
    assert lower == {"FID", "sFID", "KID"}


def test_a_network_without_a_classifier_has_no_inception_score():
    plain = Features(normal(30))
    scores = compute_scores(plain, Target.of(plain), "dinov2-vitl14", CPU)
    for name in ("IS(dinov2-vitl14)", "IS(dinov2-vitl14) (torch-fidelity)"):
        assert scores[name].value is None
        assert scores[name].reason == "dinov2-vitl14 has no classifier"
    assert "sFD(dinov2-vitl14)" not in scores


def test_json_keeps_the_keys_of_reports():
    score = Score("FID", 1.5, "lower", 10, 20, note="x")
    keys = ["name", "value", "better", "samples", "reference", "deviation", "reason", "note"]
    assert list(score.to_json()) == keys
    assert from_json(Score, score.to_json()) == score


# -- single scores ---------------------------------------------------------------------------------


def test_sfid_is_the_distance_of_spatial_features():
    one, other = layers(100), layers(80, seed=9)
    scores = compute_scores(one, Target.of(other), INCEPTION, CPU)
    assert scores["sFID"].value == frechet(fit(one.spatial), fit(other.spatial))
    assert (scores["sFID"].samples, scores["sFID"].reference) == (100, 80)
    assert scores["sFID"].value != scores["FID"].value


def test_few_images_for_many_features_are_noted():
    few, many = normal(16, 16), normal(100, 16)
    notes = [
        metrics.frechet_distance("FID", one, fit(other), Target(count=len(other))).note
        for one, other in ((few, many), (many, few), (many, many))
    ]
    note = "16 images for 16 features: biased upwards, compare at equal N only"
    assert notes == [note, note, None]


def test_neighbours_use_a_subset_of_a_large_reference(monkeypatch):
    monkeypatch.setattr(metrics, "PRC_REFERENCE", 50)
    reference = normal(200, seed=1)
    found = metrics.neighbour_scores(normal(60), Target(reference), CPU)
    assert {(score.samples, score.reference) for score in found} == {(60, 50)}
    subset = reference[metrics._subset(200, 50)]
    assert found == metrics.neighbour_scores(normal(60), Target(subset), CPU)


def test_inception_score_counts_classes():
    logits = 50 * torch.eye(10).repeat(1000, 1)
    adm, fidelity = metrics.inception_scores(Features(normal(10_000), logits), INCEPTION)
    assert adm.value == pytest.approx(10, rel=1e-6)
    assert adm.deviation == pytest.approx(0, abs=1e-6)
    assert (adm.note, fidelity.note) == ("2 splits", "10 splits")
    adm, _ = metrics.inception_scores(Features(normal(100), logits[:100]), INCEPTION)
    assert (adm.note, adm.deviation) == ("1 split", None)


def test_inception_score_of_adm_has_splits_in_order_and_the_other_is_shuffled():
    """Samples in order of their class: only shuffled splits have both classes."""
    logits = (50 * torch.eye(2)).repeat_interleave(5000, dim=0)
    adm, fidelity = metrics.inception_scores(Features(normal(10_000), logits), INCEPTION)
    assert adm.value == pytest.approx(1, abs=1e-6)
    assert fidelity.value == pytest.approx(2, rel=1e-2)


def test_last_split_of_adm_is_shorter():
    logits = normal(7_000, width=10)
    adm, first, last = (
        metrics.inception_scores(Features(normal(len(part)), part), INCEPTION)[0]
        for part in (logits, logits[:5000], logits[5000:])
    )
    assert adm.value == pytest.approx((first.value + last.value) / 2)
    assert adm.note == "2 splits"


# -- what is not available -------------------------------------------------------------------------

NEEDS_TEN = {"IS (torch-fidelity)"}
NEEDS_SIX = {"density", "coverage", *NEEDS_TEN}
NEEDS_FOUR = {"precision", "recall", *NEEDS_SIX}


@pytest.mark.parametrize(
    ("count", "missing"),
    [
        (1, {"FID", "sFID", "KID", "IS", *NEEDS_FOUR}),
        (3, {"KID", *NEEDS_FOUR}),
        (5, {"KID", *NEEDS_SIX}),
        (9, {"KID", *NEEDS_TEN}),
        (19, {"KID"}),
        (20, set()),
    ],
)
def test_too_few_images_give_a_reason(count, missing):
    of_samples = compute_scores(layers(count), Target.of(layers(100, seed=9)), INCEPTION, CPU)
    of_reference = compute_scores(layers(100), Target.of(layers(count, seed=9)), INCEPTION, CPU)
    for scores, expected in ((of_samples, missing), (of_reference, missing - {"IS", *NEEDS_TEN})):
        assert {name for name, score in scores.items() if score.value is None} == expected
        for name, score in scores.items():
            assert (score.reason is None) == (name not in expected)
            assert score.value is None or np.isfinite(score.value)
            assert name not in expected or f" {count}" in score.reason


def test_statistics_give_frechet_distance_only(features):
    real, fake = features
    values = real.values.double().numpy()
    published = from_moments(values.mean(0), np.cov(values, rowvar=False), "file")
    target = Target(gaussian=published, missing="the reference has statistics only, no images")
    scores = compute_scores(Features(fake.values, fake.logits, fake.values), target, INCEPTION, CPU)
    expected = frechet(fit(fake.values), fit(real.values))
    assert scores["FID"].value == pytest.approx(expected, rel=1e-9)
    assert scores["FID"].reference is None
    for name in ("sFID", *IN_IMAGES):
        assert (scores[name].value, scores[name].reason) == (None, target.missing)
    assert scores["IS"].value is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_arithmetic_that_fails_is_a_reason(value):
    """NaN and infinity fail the decomposition; the squares of 1e200 are an infinite distance."""
    broken = normal(50).double()
    broken[3, 2] = value
    score = metrics.frechet_distance("FID", broken, fit(normal(50)), Target())
    assert score.value is None
    assert "the arithmetic" in score.reason


# -- real against real -----------------------------------------------------------------------------


def test_real_vs_real_is_scored_at_the_number_of_samples(features, scores):
    real, _ = features
    few = compute_real_vs_real(real, 100, "digits-cnn", CPU)
    half = compute_real_vs_real(real, 1000, "digits-cnn", CPU)
    assert (few[DIGITS[0]].samples, few[DIGITS[0]].reference) == (100, 500)
    assert tuple(half) == DIGITS
    counts = {(part.samples, part.reference) for name, part in half.items() if "IS" not in name}
    assert counts == {(300, 300)}
    assert (half["IS(digits-cnn)"].samples, half["IS(digits-cnn)"].reference) == (300, None)
    assert few[DIGITS[0]].low > half[DIGITS[0]].high
    assert 0 < half[DIGITS[0]].high < scores[DIGITS[0]].value / 2
    assert half["precision(digits-cnn)"].low > scores["precision(digits-cnn)"].value
    assert all(part.low < part.mean < part.high for part in few.values())
    assert {part.splits for part in few.values()} == {5}
    assert few == compute_real_vs_real(real, 100, "digits-cnn", CPU)


def test_a_split_has_every_image_once(monkeypatch):
    splits = []
    monkeypatch.setattr(
        metrics,
        "compute_scores",
        lambda samples, target, *_: splits.append((samples, target)) or {},
    )
    numbers = torch.arange(10.0)[:, None]
    reference = Features(torch.arange(20.0).reshape(10, 2), numbers, numbers)
    compute_real_vs_real(reference, 4, "digits-cnn", CPU)
    for samples, target in splits:
        assert (len(samples), len(target.values)) == (4, 6)
        together = torch.cat([samples.values, target.values])
        assert torch.equal(together[together[:, 0].argsort()], reference.values)
        assert torch.equal(samples.values[:, 0] / 2, samples.logits[:, 0])
    assert not torch.equal(splits[0][0].values, splits[1][0].values)


def test_real_vs_real_of_sfid_is_the_distance_between_the_parts_of_each_split():
    spatial = normal(200, width=6, seed=3)
    found = compute_real_vs_real(Features(normal(200), None, spatial), 80, INCEPTION, CPU)["sFID"]
    generator, expected = np.random.default_rng(metrics.SEED), []
    for _ in range(5):
        order = generator.permutation(200)
        one, other = (fit(spatial[np.sort(part)]) for part in (order[:80], order[80:]))
        expected.append(frechet(one, other))
    assert (found.low, found.high) == pytest.approx((min(expected), max(expected)))
    assert (found.samples, found.reference) == (80, 120)


def test_real_vs_real_skips_what_is_not_available():
    assert compute_real_vs_real(Features(normal(1)), 10, INCEPTION, CPU) == {}
    assert compute_real_vs_real(Features(normal(2)), 10, INCEPTION, CPU) == {}
    assert tuple(compute_real_vs_real(Features(normal(5)), 10, INCEPTION, CPU)) == ("FID",)
