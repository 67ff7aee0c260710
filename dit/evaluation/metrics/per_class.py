"""Class by class: whether samples show what they were asked for, and how far they are from the real ones."""

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
    """How often an SVM trained on the real 8x8 digits sees in [N, 3, S, S] uint8 images the digits asked for.

    The images are brought back to 8x8 by area. Labels are 0..9.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    predicted = _fit_svm(data.data, data.target).predict(to_digits(images).numpy())
    return _recognition(predicted, np.asarray(labels))


def svm_floor() -> Recognition:
    """The same for real digits: half of them recognised by an SVM trained on the other half, both ways."""
    from sklearn.datasets import load_digits

    data = load_digits()
    one, other = np.array_split(np.random.default_rng(SEED).permutation(len(data.target)), 2)
    predicted = np.empty_like(data.target)
    for seen, unseen in ((one, other), (other, one)):
        predicted[unseen] = _fit_svm(data.data[seen], data.target[seen]).predict(data.data[unseen])
    return _recognition(predicted, data.target)


def _fit_svm(digits: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.svm import SVC

    return SVC(gamma=0.001).fit(digits, labels)


def _recognition(predicted: np.ndarray, labels: np.ndarray) -> Recognition:
    right = predicted == labels
    per_class = {str(label): float(right[labels == label].mean()) for label in np.unique(labels)}
    return Recognition(float(right.mean()), per_class, len(labels))


def classifier_accuracy(
    logits: Tensor, labels: Sequence[str], class_names: Sequence[str]
) -> dict[str, float]:
    """Share of each class that a classifier recognises, from logits [N, K]; empty unless it knows all the labels."""
    if not set(labels) <= set(class_names):
        return {}
    names = np.asarray(class_names)
    return _recognition(names[logits.argmax(dim=1).numpy()], np.asarray(labels)).per_class


# -- class by class ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """Features [N, D] and the class of each."""

    values: Tensor
    labels: Sequence[str]


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Args:
        samples, reference: how many images there are of it.
        fd: Fréchet distance between the two; `floor_fd`: of as many real ones, at most half, to the rest.
        accuracy: share of the samples recognised as this class.
    """

    label: str
    samples: int
    reference: int | None = None
    fd: float | None = None
    floor_fd: float | None = None
    accuracy: float | None = None


def class_rows(
    samples: Labelled, reference: Labelled | None, recognised: dict[str, float]
) -> list[ClassRow]:
    """Every class of the samples, in the order of numbers or of the alphabet.

    A distance between few images is biased upwards, so read it beside that of as many real ones.
    """
    ours, real = _places(samples), _places(reference) if reference else {}
    return [
        _class_row(
            label, samples, ours[label], reference, real.get(label, []), recognised.get(label)
        )
        for label in sorted(ours, key=natural)
    ]


def _class_row(
    label: str,
    samples: Labelled,
    ours: list[int],
    reference: Labelled | None,
    real: list[int],
    accuracy: float | None,
) -> ClassRow:
    row = ClassRow(label, len(ours), len(real) if reference else None, accuracy=accuracy)
    if reference is None or len(ours) < 2 or len(real) < 4:
        return row
    shuffled = np.random.default_rng(SEED).permutation(real)
    first = min(len(ours), len(real) // 2)
    one, other = (fit(reference.values[part]) for part in (shuffled[:first], shuffled[first:]))
    fd = frechet(fit(samples.values[ours]), fit(reference.values[real]))
    return dataclasses.replace(row, fd=fd, floor_fd=frechet(one, other))


def _places(images: Labelled) -> dict[str, list[int]]:
    """Where the images of each class are."""
    places: dict[str, list[int]] = {}
    for i, label in enumerate(images.labels):
        places.setdefault(label, []).append(i)
    return places


def natural(label: str) -> tuple[bool, int, str]:
    """Sorts numbers by value, before names."""
    return not label.isdigit(), int(label) if label.isdigit() else 0, label
