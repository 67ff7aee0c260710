"""Scores equal torch-fidelity's own, and are never made up."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from dit.data.images import Digits
from dit.errors import UserError
from dit.evaluation import metrics
from dit.evaluation.extractors import load_extractor
from dit.evaluation.features import Features, extract
from dit.evaluation.images import from_data
from dit.evaluation.statistics import Statistics
from dit.hardware import Ranks

CPU = torch.device("cpu")


class Pixels(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index].contiguous()


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits-cnn", None, CPU)


@pytest.fixture(scope="module")
def halves():
    """Real digits, and other digits with noise: [600, 3, 32, 32] each."""
    images = Digits(32).images
    noise = torch.randint(-60, 61, (600, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    return images[:600], (images[600:1200].int() + noise).clamp(0, 255).byte()


@pytest.fixture(scope="module")
def features(extractor, halves):
    return [Features(*extractor(images), digest="") for images in halves]


@pytest.fixture
def scores(features):
    real, fake = features
    return metrics.compute_scores(fake, real, None, "digits-cnn")


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 10)


def gaussian(n, width=8, shift=0.0, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + shift


def test_scores_equal_calculate_metrics_of_torch_fidelity(halves, extractor, scores):
    import torch_fidelity

    real, fake = halves
    theirs = torch_fidelity.calculate_metrics(
        input1=Pixels(fake), input2=Pixels(real), feature_extractor="digits-cnn",
        fid=True, kid=True, isc=True, prc=True,
        kid_subsets=10, kid_subset_size=metrics.kid_subset_size(600, 600), isc_splits=1, samples_shuffle=False,
        cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )
    assert scores["fd"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert scores["is"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert scores["precision"].value == pytest.approx(theirs["precision"], rel=1e-6)
    assert scores["recall"].value == pytest.approx(theirs["recall"], rel=1e-6)
    # theirs is float32: the kernel's cubes cost it digits
    assert scores["kid"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert scores["kid"].deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def test_kid_is_float64(features):
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, fake = features
    theirs = kid_features_to_metric(fake.values.double(), real.values.double(), kid_subsets=10, kid_subset_size=300,
                                    verbose=False)
    ours = metrics.kernel_distance(fake.values, real.values)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)


def test_only_inception_gives_fid(scores):
    assert [score.name for score in scores.values()][:2] == ["FD(digits-cnn)", "KID(digits-cnn)"]
    assert metrics.score_names("inception-v3-compat")["fd"] == "FID"


def test_frechet_distance_of_gaussians_is_the_formula():
    """Equal covariances: the squared distance of the means. One scaled by 2: the squared difference of deviations."""
    x = gaussian(4000, 4)
    assert metrics.frechet(x, x + 3).value == pytest.approx(4 * 9, rel=1e-6)
    centred = x - x.mean(0)
    variance = centred.double().var(0).sum().item()
    assert metrics.frechet(2 * centred, centred).value == pytest.approx(variance, rel=1e-6)


def test_distance_to_itself_is_zero(features):
    real, _ = features
    itself = metrics.compute_scores(real, real, None, "digits-cnn")
    assert itself["fd"].value == pytest.approx(0, abs=1e-6)
    assert itself["kid"].value < 0.02
    assert itself["precision"].value == itself["recall"].value == 1


def test_floor_is_real_against_real_at_the_same_number(features, scores):
    real, _ = features
    few = metrics.compute_floor(real, 100, "digits-cnn")
    assert (few["fd"].samples, few["fd"].reference) == (100, 500)
    floor = metrics.compute_floor(real, 1000, "digits-cnn")
    assert few["fd"].value > floor["fd"].value
    assert set(floor) == {"fd", "kid", "precision", "recall", "is"}
    assert (floor["is"].samples, floor["is"].reference) == (600, None)
    del floor["is"]
    assert {(score.samples, score.reference) for score in floor.values()} == {(300, 300)}
    assert 0 < floor["fd"].value < scores["fd"].value / 2
    assert floor["precision"].value > scores["precision"].value


@pytest.mark.parametrize(
    ("count", "missing"),
    [
        (1, {"fd", "kid", "precision", "recall", "is"}),
        (3, {"kid", "precision", "recall"}),
        (19, {"kid"}),
        (20, set()),
    ],
)
def test_too_few_images_give_a_reason(count, missing):
    few = Features(gaussian(count), gaussian(count), "")
    many = Features(gaussian(100, seed=1), gaussian(100, seed=1), "")
    scores = metrics.compute_scores(few, many, None, "digits-cnn")
    assert {key for key, score in scores.items() if score.value is None} == missing
    for score in scores.values():
        assert (score.reason is None) != (score.value is None)
        assert score.value is None or np.isfinite(score.value)
    assert all(f"has {count}" in scores[key].reason for key in missing)


def test_few_images_for_many_features_are_noted():
    score = metrics.frechet(gaussian(10, 16), gaussian(100, 16))
    assert score.value is not None
    assert "biased" in score.note


def test_statistics_give_frechet_distance_only(features):
    real, fake = features
    values = real.values.double().numpy()
    statistics = Statistics(values.mean(0), np.cov(values, rowvar=False), "file", "")
    scores = metrics.compute_scores(fake, None, statistics, "digits-cnn")
    assert scores["fd"].value == pytest.approx(metrics.frechet(fake.values, real.values).value, rel=1e-9)
    for key in ("kid", "precision", "recall"):
        assert scores[key].value is None
        assert "statistics only" in scores[key].reason
    assert metrics.compute_floor(None, 10, "digits-cnn") == {}


def test_statistics_of_another_network_are_refused(features):
    with pytest.raises(UserError, match="64 features of the samples and 8"):
        metrics.frechet_to_statistics(features[0].values, Statistics(np.zeros(8), np.eye(8), "file", ""))


def test_arithmetic_that_fails_is_a_reason():
    statistics = Statistics(np.zeros(8), np.full((8, 8), 1e308), "file", "")
    with np.errstate(all="ignore"):
        score = metrics.frechet_to_statistics(gaussian(50) * 1e10, statistics)
    assert score.value is None
    assert score.reason


def test_inception_score_counts_classes_and_splits():
    logits = 50 * torch.eye(10).repeat(1000, 1)
    score = metrics.inception_score(logits)
    assert score.value == pytest.approx(10, rel=1e-6)
    assert score.deviation == pytest.approx(0, abs=1e-6)
    assert score.note == "2 splits"
    assert metrics.inception_score(logits[:100]).deviation is None


def test_large_reference_is_cut_for_precision(monkeypatch):
    monkeypatch.setattr(metrics, "PRC_REFERENCE", 50)
    precision, recall = metrics.precision_recall(gaussian(60), gaussian(200, seed=1))
    assert precision.reference == recall.reference == 50


def test_extract_gives_what_the_network_gives_in_order(extractor, halves, features):
    digits = Digits(32)
    digits.images, digits.labels = digits.images[:150], digits.labels[:150]
    found = extract(from_data(digits, "digits"), extractor, 100, Ranks(), "features")
    assert torch.allclose(found.values, features[0].values[:150], atol=1e-5)
    assert len(found) == 150


def test_svm_recognises_real_digits_and_not_wrong_labels():
    digits = Digits(32)
    right = metrics.svm_accuracy(digits.images, digits.labels)
    assert right.accuracy > 0.99
    assert list(right.per_class) == [str(i) for i in range(10)]
    threes = np.full(len(digits), 3)
    assert metrics.svm_accuracy(digits.images, threes).per_class == {"3": pytest.approx(183 / 1797, abs=0.01)}


def test_svm_floor_is_below_certainty():
    assert 0.97 < metrics.svm_floor().accuracy < 1
