"""Recognition of digits; distance and accuracy of every class."""

import itertools

import numpy as np
import pytest
import torch

from dit.data.images import Digits
from dit.evaluation.metrics import per_class


def test_svm_recognises_real_digits_and_not_wrong_labels():
    digits = Digits(32)
    right = per_class.svm_accuracy(digits.images, digits.labels)
    assert right.accuracy > 0.99
    assert list(right.per_class) == [str(i) for i in range(10)]
    threes = np.full(len(digits), 3)
    assert per_class.svm_accuracy(digits.images, threes).per_class == {
        "3": pytest.approx(183 / 1797, abs=0.01)
    }


def test_svm_does_not_recognise_all_real_digits():
    assert 0.97 < per_class.svm_real_vs_real().accuracy < 1


# -- class by class --------------------------------------------------------------------------------

SAMPLES = {"10": 9, "cat": 4, "2": 3, "1": 5, "0": 1}
REAL = {"0": 8, "1": 3, "2": 8, "10": 8, "dog": 6}


def labelled(counts, seed):
    """Return features of this many images of each class, in random order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation([label for label, count in counts.items() for _ in range(count)])
    values = torch.from_numpy(generator.normal(size=(len(labels), 2)).astype(np.float32))
    return per_class.LabelledFeatures(values, [str(label) for label in labels])


def of_class(images, label):
    return images.values[torch.tensor([one == label for one in images.labels])].double()


def distance(one, other):
    """The formula: tr sqrt(S1 S2) sums the roots of the eigenvalues of the product."""
    shift = (one.mean(0) - other.mean(0)).square().sum()
    spreads = one.T.cov(), other.T.cov()
    roots = torch.linalg.eigvals(spreads[0] @ spreads[1]).real.clamp(min=0).sqrt()
    return float(shift + spreads[0].trace() + spreads[1].trace() - 2 * roots.sum())


@pytest.fixture
def found():
    rows = per_class.class_rows(labelled(SAMPLES, 0), labelled(REAL, 1), {"2": 0.5, "cat": 0.25})
    return {row.label: row for row in rows}


def test_rows_are_the_classes_of_the_samples_numbers_first(found):
    assert list(found) == ["0", "1", "2", "10", "cat"]
    assert {label: row.samples for label, row in found.items()} == SAMPLES
    assert [row.reference for row in found.values()] == [8, 3, 8, 8, 0]
    assert [row.accuracy for row in found.values()] == [None, None, 0.5, None, 0.25]


def test_distance_of_a_class_is_between_all_its_samples_and_all_its_real_images(found):
    samples, real = labelled(SAMPLES, 0), labelled(REAL, 1)
    for label in ("2", "10"):
        expected = distance(of_class(samples, label), of_class(real, label))
        assert found[label].fd == pytest.approx(expected, rel=1e-6)
        assert expected > 0.01


@pytest.mark.parametrize(("label", "count"), [("2", 3), ("10", 4)])
def test_real_vs_real_of_a_class_is_as_many_images_at_most_half_against_the_rest(
    found, label, count
):
    real = of_class(labelled(REAL, 1), label)
    splits = [list(chosen) for chosen in itertools.combinations(range(8), count)]
    rest = [[i for i in range(8) if i not in chosen] for chosen in splits]
    possible = np.array([distance(real[a], real[b]) for a, b in zip(splits, rest, strict=True)])
    assert np.abs(possible / found[label].floor_fd - 1).min() < 1e-6
    assert possible.min() > 0.01


def test_too_few_images_of_a_class_have_no_distance(found):
    for label in ("0", "1", "cat"):  # one sample, three real images, none
        assert found[label].fd is None is found[label].floor_fd


def test_without_a_reference_rows_have_counts_and_accuracy_only():
    rows = per_class.class_rows(labelled(SAMPLES, 0), None, {"1": 1.0})
    assert [row.samples for row in rows] == [1, 5, 3, 9, 4]
    assert [row.accuracy for row in rows] == [None, 1.0, None, None, None]
    assert all(row.reference is row.fd is row.floor_fd is None for row in rows)


def test_classifier_accuracy_is_the_share_of_each_class_with_the_largest_logit():
    logits = torch.tensor([[0.1, 2, 0], [-1, -3, -2], [0, 0, 5], [9, 1, 1], [0, 0, 1]])
    names = ("cat", "dog", "owl")
    assert per_class.classifier_accuracy(logits, ["dog", "cat", "owl", "dog", "dog"], names) == {
        "cat": 1.0,
        "dog": pytest.approx(1 / 3),
        "owl": 1.0,
    }
    assert per_class.classifier_accuracy(logits, ["owl"] * 5, names) == {
        "owl": pytest.approx(2 / 5)
    }


def test_a_classifier_that_does_not_know_all_classes_is_not_used():
    names = ("cat", "dog", "owl")
    assert per_class.classifier_accuracy(torch.eye(3), ["cat", "dog", "cow"], names) == {}
