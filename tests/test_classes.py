"""An SVM sees the digits that were asked for."""

import numpy as np
import pytest

from dit.data.images import Digits
from dit.evaluation.scores import classes


def test_svm_recognises_real_digits_and_not_wrong_labels():
    digits = Digits(32)
    right = classes.svm_accuracy(digits.images, digits.labels)
    assert right.accuracy > 0.99
    assert list(right.per_class) == [str(i) for i in range(10)]
    threes = np.full(len(digits), 3)
    assert classes.svm_accuracy(digits.images, threes).per_class == {"3": pytest.approx(183 / 1797, abs=0.01)}


def test_svm_floor_is_below_certainty():
    assert 0.97 < classes.svm_floor().accuracy < 1
