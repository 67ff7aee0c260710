"""Scores class by class: whether samples show the class asked for, and their Fréchet distance."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dit.data.images import to_digits
from dit.evaluation.metrics.compute import SEED
from dit.evaluation.metrics.frechet import fit, frechet


@dataclass(frozen=True)
class Recognition:
    """Share of images recognised as the class they should show: of all, and of each class."""

    accuracy: float
    per_class: dict[str, float]
    count: int


def svm_accuracy(images: Tensor, labels: Sequence[int]) -> Recognition:
    """Classify samples [N, 3, S, S] uint8, averaged to 8x8, by an SVM trained on the real digits.

    Args:
        labels: digits 0..9 that the samples should show.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    svm = _fit_svm(data.data, data.target)
    predicted = svm.predict(to_digits(images).numpy())
    return _recognition(predicted, np.asarray(labels))


def svm_real_vs_real() -> Recognition:
    """Classify real digits: each half by an SVM trained on the other half."""
    from sklearn.datasets import load_digits

    data = load_digits()
    shuffled = np.random.default_rng(SEED).permutation(len(data.target))
    one, other = np.array_split(shuffled, 2)
    predicted = np.empty_like(data.target)
    for seen, unseen in ((one, other), (other, one)):
        svm = _fit_svm(data.data[seen], data.target[seen])
        predicted[unseen] = svm.predict(data.data[unseen])
    return _recognition(predicted, data.target)


def _fit_svm(digits: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.svm import SVC

    # gamma suits pixels in 0..16
    return SVC(gamma=0.001).fit(digits, labels)


def _recognition(predicted: np.ndarray, labels: np.ndarray) -> Recognition:
    right = predicted == labels
    classes = np.unique(labels)
    per_class = {str(label): float(right[labels == label].mean()) for label in classes}
    return Recognition(float(right.mean()), per_class, len(labels))


def classifier_accuracy(
    logits: Tensor, labels: Sequence[str], class_names: Sequence[str]
) -> dict[str, float]:
    """Return the share of each class that a classifier recognises, from its logits [N, K].

    The result is empty unless the classifier knows all labels.
    """
    if not set(labels) <= set(class_names):
        return {}
    indices = logits.argmax(dim=1).numpy()
    predicted = np.asarray(class_names)[indices]
    return _recognition(predicted, np.asarray(labels)).per_class


# -- class by class --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledFeatures:
    """Features [N, D] and the class of each."""

    values: Tensor
    labels: Sequence[str]


@dataclass(frozen=True)
class ClassRow:
    """Scores of one class, under the keys of report.json.

    Args:
        samples, reference: numbers of images of the class.
        fd: Fréchet distance between the two.
        floor_fd: the same real against real: of as many images, at most half, to the rest.
        accuracy: share of the samples recognised as this class.
    """

    label: str
    samples: int
    reference: int | None = None
    fd: float | None = None
    floor_fd: float | None = None
    accuracy: float | None = None


def class_rows(
    samples: LabelledFeatures, reference: LabelledFeatures | None, recognised: dict[str, float]
) -> list[ClassRow]:
    """Return a row for every class of the samples, in the order of numbers or of the alphabet.

    A distance between few images is biased upwards: compare it with that of as many real ones.
    """
    sample_indices = _indices_by_class(samples)
    real_indices = _indices_by_class(reference) if reference else {}
    rows = []
    for label in sorted(sample_indices, key=_natural_order):
        ours = sample_indices[label]
        real = real_indices.get(label, [])
        count = len(real) if reference else None
        row = ClassRow(label, len(ours), count, accuracy=recognised.get(label))
        # Four real images are two pairs, the least for a distance of real against real.
        if reference and len(ours) >= 2 and len(real) >= 4:
            fitted = fit(samples.values[ours])
            fd = frechet(fitted, fit(reference.values[real]))
            floor_fd = _real_vs_real(reference.values, real, len(ours))
            row = dataclasses.replace(row, fd=fd, floor_fd=floor_fd)
        rows.append(row)
    return rows


def _real_vs_real(values: Tensor, indices: list[int], count: int) -> float:
    shuffled = np.random.default_rng(SEED).permutation(indices)
    size = min(count, len(indices) // 2)
    one = fit(values[shuffled[:size]])
    rest = fit(values[shuffled[size:]])
    return frechet(one, rest)


def _indices_by_class(images: LabelledFeatures) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for i, label in enumerate(images.labels):
        indices.setdefault(label, []).append(i)
    return indices


def _natural_order(label: str) -> tuple[bool, int, str]:
    """Return a sorting key: numbers by value, before names."""
    if label.isdigit():
        return False, int(label), label
    return True, 0, label
