"""Which samples of digits an SVM recognises."""

import dataclasses
from typing import Any

from dit.data.captions import DIGIT_CAPTIONS
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics.per_class import svm_accuracy, svm_real_vs_real
from dit.evaluation.samples import is_unconditional
from dit.report.evaluation_page import Digits


def label_by_digit(samples: ImageSet) -> ImageSet:
    """Return samples whose labels are digits: a caption such as `a seven` becomes `7`."""
    digits = {caption: str(digit) for digit, caption in enumerate(DIGIT_CAPTIONS)}
    labels = samples.labels and [digits.get(label, label) for label in samples.labels]
    return dataclasses.replace(samples, labels=labels)


def recognise(samples: ImageSet, settings: dict[str, Any]) -> Digits | None:
    """Return the share of samples that show the digit of their label; None without classes."""
    if is_unconditional(settings):
        return None
    if samples.labels is None:
        return Digits(reason="the samples have no labels (labels.csv, class folders, or arr_1)")
    others = set(samples.labels) - {str(digit) for digit in range(10)}
    if others:
        return Digits(reason=f"label {min(others)!r} is no digit from 0 to 9")

    images = samples.stack(range(len(samples)))
    labels = [int(label) for label in samples.labels]
    return Digits(svm_accuracy(images, labels), svm_real_vs_real())
