"""Scores equal torch-fidelity's own, and are never made up."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from dit.data.images import Digits
from dit.errors import UserError
from dit.evaluation.extractors.load import load_extractors
from dit.evaluation.inputs.features import Features
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics.compute import Target, compute_floor, compute_scores, score_names
from dit.evaluation.metrics.frechet import fit, frechet, from_moments

CPU = torch.device("cpu")
INCEPTION = "inception-v3-compat"
DIGITS = (
    "FD(digits-cnn)",
    "KID(digits-cnn)",
    "precision(digits-cnn)",
    "recall(digits-cnn)",
    "density(digits-cnn)",
    "coverage(digits-cnn)",
    "IS(digits-cnn)",
    "IS(digits-cnn) (torch-fidelity)",
)
IN_IMAGES = ("KID", "precision", "recall", "density", "coverage")


class Pixels(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index].contiguous()


@pytest.fixture(scope="module")
def extractor():
    return load_extractors(["digits-cnn"], [], CPU)[0]


@pytest.fixture(scope="module")
def halves():
    """Real digits, and other digits with noise: [600, 3, 32, 32] each."""
    images = Digits(32).images
    noise = torch.randint(-60, 61, (600, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    return images[:600], (images[600:1200].int() + noise).clamp(0, 255).byte()


@pytest.fixture(scope="module")
def features(extractor, halves):
    return [Features(*extractor(images)) for images in halves]


@pytest.fixture
def scores(features):
    real, fake = features
    return compute_scores(fake, Target.of(real), "digits-cnn", CPU)


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 10)


@pytest.fixture(scope="module")
def doubled(extractor):
    """digits-cnn as torch-fidelity takes it, its layers in float64, for so does our arithmetic."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    class Doubled(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        def forward(self, images):
            values, logits, _ = extractor(images)
            return tuple(
                {"features": values, "logits": logits}[name].double() for name in self.features_list
            )

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    register_feature_extractor("digits-cnn-doubled", Doubled)
    yield "digits-cnn-doubled"
    del FEATURE_EXTRACTORS_REGISTRY["digits-cnn-doubled"]


def gaussian(n, width=8, shift=0.0, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + shift


def layers(n, seed=0):
    """Features of a network that has everything."""
    return Features(
        gaussian(n, seed=seed), gaussian(n, 10, seed=seed + 1), gaussian(n, 6, seed=seed + 2)
    )


# -- against torch-fidelity --------------------------------------------------------------------------------------


@pytest.mark.portable
def test_scores_equal_calculate_metrics_of_torch_fidelity(halves, doubled, scores):
    import torch_fidelity

    real, fake = halves
    common = dict(
        input1=Pixels(fake),
        feature_extractor=doubled,
        batch_size=600,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    theirs = torch_fidelity.calculate_metrics(
        **common,
        input2=Pixels(real),
        fid=True,
        kid=True,
        prc=True,
        isc=True,
        isc_splits=1,
        samples_shuffle=False,
        kid_subsets=10,
        kid_subset_size=metrics.kid_subset_size(600, 600),
    )
    expected = {
        "FD": "frechet_inception_distance",
        "KID": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
        "IS": "inception_score_mean",
    }
    for name, key in expected.items():
        assert scores[f"{name}(digits-cnn)"].value == pytest.approx(theirs[key], rel=1e-6), name
    deviation = scores["KID(digits-cnn)"].deviation
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)
    theirs = torch_fidelity.calculate_metrics(**common, isc=True)
    score = scores["IS(digits-cnn) (torch-fidelity)"]
    assert score.value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert score.deviation == pytest.approx(theirs["inception_score_std"], rel=1e-6)


def test_kid_is_float64(features):
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, fake = features
    theirs = kid_features_to_metric(
        fake.values[:500].double(),
        real.values.double(),
        kid_subsets=10,
        kid_subset_size=250,
        verbose=False,
    )
    ours = metrics.kernel_distance(fake.values[:500], Target(real.values), CPU)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)
    assert ours.deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-12)
    assert ours.note == "10 subsets of 250"


# -- names -------------------------------------------------------------------------------------------------------


def test_only_inception_gives_fid(scores):
    assert tuple(scores) == DIGITS
    assert [score.name for score in scores.values()] == list(DIGITS)
    assert score_names(INCEPTION) == ("FID", "sFID", *IN_IMAGES, "IS", "IS (torch-fidelity)")
    assert score_names("digits-cnn") == (DIGITS[0], "sFD(digits-cnn)", *DIGITS[1:])


def test_a_network_with_all_layers_has_all_scores():
    scores = compute_scores(layers(30), Target.of(layers(40, seed=9)), INCEPTION, CPU)
    assert tuple(scores) == score_names(INCEPTION)
    assert all(score.value is not None for score in scores.values())
    assert {score.better for name, score in scores.items() if "FID" in name or name == "KID"} == {
        "lower"
    }
    assert {scores[name].better for name in ("precision", "density", "IS")} == {"higher"}


def test_a_network_without_a_classifier_has_no_inception_score():
    plain = Features(gaussian(30))
    scores = compute_scores(plain, Target.of(plain), "dinov2-vitl14", CPU)
    for name in ("IS(dinov2-vitl14)", "IS(dinov2-vitl14) (torch-fidelity)"):
        assert scores[name].value is None
        assert scores[name].reason == "dinov2-vitl14 has no classifier"
    assert "sFD(dinov2-vitl14)" not in scores


# -- distances ---------------------------------------------------------------------------------------------------


def test_spatial_features_make_sfid():
    one, other = layers(100), layers(80, seed=9)
    scores = compute_scores(one, Target.of(other), INCEPTION, CPU)
    assert scores["sFID"].value == metrics.frechet(fit(one.spatial), fit(other.spatial))
    assert (scores["sFID"].samples, scores["sFID"].reference) == (100, 80)
    assert scores["sFID"].value != scores["FID"].value


def test_distance_to_itself_is_zero(features):
    real, _ = features
    itself = compute_scores(real, Target.of(real), "digits-cnn", CPU)
    assert itself["FD(digits-cnn)"].value == pytest.approx(0, abs=1e-9)
    assert itself["KID(digits-cnn)"].value < 0.02
    assert [
        itself[f"{name}(digits-cnn)"].value for name in ("precision", "recall", "coverage")
    ] == [1, 1, 1]


def test_few_images_for_many_features_are_noted():
    few, many = gaussian(16, 16), gaussian(100, 16)
    for one, other in ((few, many), (many, few)):
        score = compute_scores(Features(one), Target.of(Features(other)), INCEPTION, CPU)["FID"]
        assert score.value is not None
        assert score.note == "16 images for 16 features: biased upwards, compare at equal N only"
    assert (
        compute_scores(Features(many), Target.of(Features(many)), INCEPTION, CPU)["FID"].note
        is None
    )


def test_large_reference_is_cut_for_neighbours(monkeypatch):
    monkeypatch.setattr(metrics, "PRC_REFERENCE", 50)
    reference = gaussian(200, seed=1)
    found = metrics.neighbour_scores(gaussian(60), Target(reference), CPU)
    assert {score.reference for score in found} == {50}
    assert {score.samples for score in found} == {60}
    cut = metrics.neighbour_scores(gaussian(60), Target(reference[metrics._subset(200, 50)]), CPU)
    assert found == cut


def test_inception_score_counts_classes_and_splits():
    logits = 50 * torch.eye(10).repeat(1000, 1)
    adm, fidelity = metrics.inception_scores(Features(gaussian(10_000), logits), INCEPTION)
    assert adm.value == pytest.approx(10, rel=1e-6)
    assert adm.deviation == pytest.approx(0, abs=1e-6)
    assert (adm.note, fidelity.note) == ("2 splits", "10 splits")
    adm, _ = metrics.inception_scores(Features(gaussian(100), logits[:100]), INCEPTION)
    assert (adm.note, adm.deviation) == ("1 split", None)


def test_shuffling_is_what_sets_the_two_inception_scores_apart():
    """Samples in order of their class: a split of torch-fidelity's has all classes."""
    logits = (50 * torch.eye(2)).repeat_interleave(5000, dim=0)
    adm, fidelity = metrics.inception_scores(Features(gaussian(10_000), logits), INCEPTION)
    assert adm.value == pytest.approx(1, abs=1e-6)
    assert fidelity.value == pytest.approx(2, rel=1e-2)


# -- what is not available ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "missing"),
    [
        (
            1,
            {
                "FID",
                "sFID",
                "KID",
                "precision",
                "recall",
                "density",
                "coverage",
                "IS",
                "IS (torch-fidelity)",
            },
        ),
        (3, {"KID", "precision", "recall", "density", "coverage", "IS (torch-fidelity)"}),
        (5, {"KID", "density", "coverage", "IS (torch-fidelity)"}),
        (9, {"KID", "IS (torch-fidelity)"}),
        (19, {"KID"}),
        (20, set()),
    ],
)
def test_too_few_samples_give_a_reason(count, missing):
    scores = compute_scores(layers(count), Target.of(layers(100, seed=9)), INCEPTION, CPU)
    assert {name for name, score in scores.items() if score.value is None} == missing
    for score in scores.values():
        assert (score.reason is None) != (score.value is None)
        assert score.value is None or np.isfinite(score.value)
    assert all(f"has {count}" in scores[name].reason for name in missing)


@pytest.mark.parametrize(
    ("count", "missing"),
    [
        (1, {"FID", "sFID", *IN_IMAGES}),
        (3, set(IN_IMAGES)),
        (5, {"KID", "density", "coverage"}),
        (20, set()),
    ],
)
def test_too_few_reference_images_give_a_reason(count, missing):
    scores = compute_scores(layers(100), Target.of(layers(count, seed=9)), INCEPTION, CPU)
    assert {name for name, score in scores.items() if score.value is None} == missing
    reasons = [scores[name].reason for name in missing]
    assert all(
        f"has {count}" in reason or f"and {count} reference images" in reason for reason in reasons
    )


def test_statistics_give_frechet_distance_only(features):
    real, fake = features
    values = real.values.double().numpy()
    published = from_moments(values.mean(0), np.cov(values, rowvar=False), "file")
    target = Target(gaussian=published, missing="the reference has statistics only, no images")
    scores = compute_scores(Features(fake.values, fake.logits, fake.values), target, INCEPTION, CPU)
    expected = metrics.frechet(fit(fake.values), fit(real.values))
    assert scores["FID"].value == pytest.approx(expected, rel=1e-9)
    assert scores["FID"].reference is None
    for name in ("sFID", *IN_IMAGES):
        assert (scores[name].value, scores[name].reason) == (None, target.missing)
    assert scores["IS"].value is not None


def test_another_network_is_refused(features):
    eight = Target.of(Features(gaussian(100), None, gaussian(100)))
    only_images, only_spatial = (
        Target(eight.values),
        Target(features[0].values, spatial=eight.spatial),
    )
    with pytest.raises(UserError, match="64 features of the samples and 8 of the reference"):
        compute_scores(features[0], eight, "digits-cnn", CPU)
    with pytest.raises(UserError, match="64 features of the samples and 8"):
        metrics.kernel_distance(features[0].values, only_images, CPU)
    with pytest.raises(UserError, match="64 features of the samples and 8"):
        metrics.neighbour_scores(features[0].values, only_images, CPU)
    with pytest.raises(UserError, match="64 features of the samples and 8"):
        compute_scores(
            Features(features[0].values, None, features[0].values), only_spatial, "digits-cnn", CPU
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_arithmetic_that_fails_is_a_reason(value):
    """NaN and infinity are a failed decomposition, the squares of 1e200 an infinite distance."""
    broken = gaussian(50).double()
    broken[3, 2] = value
    score = metrics.frechet_distance("FID", broken, fit(gaussian(50)), Target())
    assert score.value is None
    assert "the arithmetic" in score.reason


# -- the floor ---------------------------------------------------------------------------------------------------


def test_floor_is_real_against_real_at_the_same_number(features, scores):
    real, _ = features
    few = compute_floor(real, 100, "digits-cnn", CPU)
    assert (few["FD(digits-cnn)"].samples, few["FD(digits-cnn)"].reference) == (100, 500)
    floor = compute_floor(real, 1000, "digits-cnn", CPU)
    assert tuple(floor) == DIGITS
    assert few["FD(digits-cnn)"].low > floor["FD(digits-cnn)"].high
    assert {
        (values.samples, values.reference) for name, values in floor.items() if "IS" not in name
    } == {(300, 300)}
    assert (floor["IS(digits-cnn)"].samples, floor["IS(digits-cnn)"].reference) == (300, None)
    assert 0 < floor["FD(digits-cnn)"].high < scores["FD(digits-cnn)"].value / 2
    assert floor["precision(digits-cnn)"].low > scores["precision(digits-cnn)"].value


def test_floor_is_a_range_over_splits(features):
    real, _ = features
    floor = compute_floor(real, 200, "digits-cnn", CPU)
    assert all(values.low < values.mean < values.high for values in floor.values())
    assert {values.splits for values in floor.values()} == {5}
    assert floor == compute_floor(real, 200, "digits-cnn", CPU)


def test_a_split_of_the_floor_has_no_image_twice(monkeypatch):
    """The first half of a split and its rest make the whole reference."""
    seen = []
    monkeypatch.setattr(
        metrics, "compute_scores", lambda samples, target, *_: seen.append((samples, target)) or {}
    )
    reference = Features(
        torch.arange(20.0).reshape(10, 2), torch.arange(10.0)[:, None], torch.arange(10.0)[:, None]
    )
    compute_floor(reference, 4, "digits-cnn", CPU)
    for samples, target in seen:
        assert (len(samples), len(target.values)) == (4, 6)
        together = torch.cat([samples.values, target.values])
        assert torch.equal(together[together[:, 0].argsort()], reference.values)
        assert torch.equal(samples.values[:, 0] / 2, samples.logits[:, 0])
    assert not torch.equal(seen[0][0].values, seen[1][0].values)


def test_spatial_floor_is_the_distance_between_the_halves_of_each_split():
    spatial = gaussian(200, width=6, seed=3)
    reference = Features(gaussian(200), gaussian(200, seed=2), spatial)
    floor = compute_floor(reference, 80, INCEPTION, CPU)["sFID"]
    generator, found = np.random.default_rng(metrics.SEED), []
    for _ in range(5):
        order = generator.permutation(200)
        found.append(frechet(fit(spatial[np.sort(order[:80])]), fit(spatial[np.sort(order[80:])])))
    assert (floor.low, floor.high) == (pytest.approx(min(found)), pytest.approx(max(found)))
    assert (floor.samples, floor.reference) == (80, 120)


def test_inception_score_splits_as_adm_does():
    """Splits of 5,000 with a short last one, each scored by itself."""
    logits = gaussian(7_000, width=10)
    adm, _ = metrics.inception_scores(Features(gaussian(7_000), logits), INCEPTION)
    alone = [
        metrics.inception_scores(Features(gaussian(len(part)), part), INCEPTION)[0].value
        for part in (logits[:5000], logits[5000:])
    ]
    assert adm.value == pytest.approx(sum(alone) / 2)
    assert adm.note == "2 splits"


def test_a_floor_that_is_not_available_is_left_out():
    assert compute_floor(Features(gaussian(1)), 10, INCEPTION, CPU) == {}
    assert tuple(compute_floor(Features(gaussian(5)), 10, INCEPTION, CPU)) == ("FID",)
    assert compute_floor(Features(gaussian(2)), 10, INCEPTION, CPU) == {}
