"""Distances between samples and a reference, on features; torch-fidelity does the arithmetic.

A score that can not be computed has no value and says why; it is never 0 or NaN.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dit.data.images import to_digits
from dit.errors import UserError
from dit.evaluation.features import Features
from dit.evaluation.inception import INCEPTION
from dit.evaluation.statistics import Statistics

KID_SUBSETS, KID_SUBSET_SIZE, KID_LEAST = 100, 1000, 20
NEIGHBOURS = 3  # of precision and recall, as ADM has it (1904.06991, 2105.05233)
PRC_REFERENCE = 10_000  # reference images of precision and recall, as ADM has it
PRC_BLOCK = 2_500  # rows of a distance matrix at a time: 1 GB for 50,000 samples
IS_SPLIT = 5_000  # images in one split of the Inception score, as ADM has it
SEED = 2020  # of subsets; torch-fidelity's own


@dataclass(frozen=True)
class Score:
    """One number, or the reason why there is none.

    Args:
        samples, reference: how many images of each it compares; None where the reference does not say.
        note: what to know when reading it.
    """

    name: str
    value: float | None
    better: str  # "lower" or "higher"
    samples: int
    reference: int | None = None
    deviation: float | None = None
    reason: str | None = None
    note: str | None = None


def score_names(extractor: str) -> dict[str, str]:
    """Key -> name; only Inception gives FID, KID and IS their plain names."""
    if extractor == INCEPTION:
        return {"fd": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "is": "IS"}
    named = {"fd": f"FD({extractor})", "kid": f"KID({extractor})", "is": f"IS({extractor})"}
    return {**named, "precision": f"precision({extractor})", "recall": f"recall({extractor})"}


def compute_scores(samples: Features, reference: Features | None, statistics: Statistics | None, extractor: str
                   ) -> dict[str, Score]:
    """All scores of `samples`: fd, kid, precision, recall, is.

    Args:
        reference: features of the reference's images; `statistics`: its mean and covariance. One of the two may be
            missing; where both are there, fd takes the statistics.
    """
    values = reference.values if reference else None
    fd = frechet_to_statistics(samples.values, statistics) if statistics else frechet(samples.values, values)
    precision, recall = precision_recall(samples.values, values)
    scores = {"fd": fd, "kid": kernel_distance(samples.values, values), "precision": precision, "recall": recall,
              "is": inception_score(samples.logits)}
    return _rename(scores, extractor)


def compute_floor(reference: Features | None, count: int, extractor: str) -> dict[str, Score]:
    """What real images score: `count` of the reference, at most half, against the rest; and the `is` of all of it."""
    if reference is None or len(reference) < 2:
        return {}
    order = np.random.default_rng(SEED).permutation(len(reference))
    first = min(count, len(reference) // 2)
    one, other = reference.values[order[:first]], reference.values[order[first:]]
    precision, recall = precision_recall(one, other)
    scores = {"fd": frechet(one, other), "kid": kernel_distance(one, other), "precision": precision, "recall": recall,
              "is": inception_score(reference.logits)}
    return _rename(scores, extractor)


def _rename(scores: dict[str, Score], extractor: str) -> dict[str, Score]:
    names = score_names(extractor)
    return {key: dataclasses.replace(score, name=names[key]) for key, score in scores.items()}


# -- single scores; [N, D] features in, Score out ----------------------------------------------------------------


def frechet(samples: Tensor, reference: Tensor | None) -> Score:
    """Fréchet distance between Gaussians fitted to both (1706.08500)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    score = _start("FD", "lower", samples, reference)
    if reference is None:
        return _without(score, NO_IMAGES)
    if reason := _too_few(samples, reference, 2):
        return _without(score, reason)
    check_widths(samples.shape[1], reference.shape[1])
    fitted = fid_features_to_statistics(reference.double())
    return _frechet(score, samples, fitted["mu"], fitted["sigma"])


def frechet_to_statistics(samples: Tensor, reference: Statistics) -> Score:
    """Fréchet distance to published statistics.

    Raises:
        UserError: the statistics are of another feature network.
    """
    score = _start("FD", "lower", samples, None)
    if len(samples) < 2:
        return _without(score, f"needs at least 2 samples, has {len(samples)}")
    check_widths(samples.shape[1], len(reference.mean))
    return _frechet(score, samples, reference.mean, reference.covariance)


def _frechet(score: Score, samples: Tensor, mean: np.ndarray, covariance: np.ndarray) -> Score:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    fitted = fid_features_to_statistics(samples.double())
    try:
        value = fid_statistics_to_metric(fitted, {"mu": mean, "sigma": covariance}, verbose=False)[KEY_METRIC_FID]
    except np.linalg.LinAlgError as error:
        return _without(score, f"the arithmetic failed ({error})")
    width, least = samples.shape[1], min(score.samples, score.reference or score.samples)
    note = f"{least} images for {width} features: biased upwards, compare at equal N only" if least <= width else None
    return _with(score, value, note=note)


def kernel_distance(samples: Tensor, reference: Tensor | None) -> Score:
    """Unbiased squared MMD with a cubic kernel, mean over subsets of at most half the images (1801.01401)."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    score = _start("KID", "lower", samples, reference)
    if reference is None:
        return _without(score, NO_IMAGES)
    if reason := _too_few(samples, reference, KID_LEAST):
        return _without(score, reason)
    check_widths(samples.shape[1], reference.shape[1])
    size = kid_subset_size(len(samples), len(reference))
    found = kid_features_to_metric(samples.double(), reference.double(), kid_subsets=KID_SUBSETS, kid_subset_size=size,
                                   rng_seed=SEED, verbose=False)
    note = f"{KID_SUBSETS} subsets of {size}"
    return _with(score, found[KEY_METRIC_KID_MEAN], deviation=found[KEY_METRIC_KID_STD], note=note)


def kid_subset_size(samples: int, reference: int) -> int:
    """1000, or half of the smaller set: larger subsets of it would be nearly the same each time."""
    return min(KID_SUBSET_SIZE, samples // 2, reference // 2)


def precision_recall(samples: Tensor, reference: Tensor | None) -> tuple[Score, Score]:
    """Shares of samples near real images and of real images near samples, by 3 nearest neighbours (1904.06991)."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    if reference is not None:
        reference = reference[_subset(len(reference), PRC_REFERENCE)]
    scores = (_start("precision", "higher", samples, reference), _start("recall", "higher", samples, reference))
    if reference is None:
        return _without(scores[0], NO_IMAGES), _without(scores[1], NO_IMAGES)
    if reason := _too_few(samples, reference, NEIGHBOURS + 1):
        return _without(scores[0], reason), _without(scores[1], reason)
    check_widths(samples.shape[1], reference.shape[1])
    found = prc_features_to_metric(samples.double(), reference.double(), prc_neighborhood=NEIGHBOURS,
                                   prc_batch_size=PRC_BLOCK, save_cpu_ram=True, verbose=False)
    return _with(scores[0], found[KEY_METRIC_PRECISION]), _with(scores[1], found[KEY_METRIC_RECALL])


def _subset(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices, always the same ones."""
    return np.sort(np.random.default_rng(SEED).permutation(count)[:most])


def inception_score(logits: Tensor) -> Score:
    """exp of the mean KL between p(class | image) and p(class), in splits of 5,000 without shuffling, as ADM."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    score = _start("IS", "higher", logits, None)
    if len(logits) < 2:
        return _without(score, f"needs at least 2 samples, has {len(logits)}")
    splits = max(1, len(logits) // IS_SPLIT)
    found = isc_features_to_metric(logits, splits=splits, shuffle=False)
    deviation = found[KEY_METRIC_ISC_STD] if splits > 1 else None
    return _with(
        score, found[KEY_METRIC_ISC_MEAN], deviation=deviation, note="1 split" if splits == 1 else f"{splits} splits"
    )


NO_IMAGES = "the reference has statistics only, no images"


def _start(name: str, better: str, samples: Tensor, reference: Tensor | None) -> Score:
    return Score(name, None, better, len(samples), None if reference is None else len(reference))


def _too_few(samples: Tensor, reference: Tensor, least: int) -> str | None:
    if min(len(samples), len(reference)) >= least:
        return None
    return (
        f"needs at least {least} images on both sides, has {len(samples)} samples and {len(reference)} reference images"
    )


def _without(score: Score, reason: str) -> Score:
    return dataclasses.replace(score, reason=reason)


def _with(score: Score, value: float, deviation: float | None = None, note: str | None = None) -> Score:
    if not math.isfinite(value):
        return _without(score, f"the arithmetic gave {value}")
    return dataclasses.replace(score, value=value, deviation=deviation, note=note)


def check_widths(samples: int, reference: int) -> None:
    """Refuse features of different networks."""
    if samples != reference:
        raise UserError(f"{samples} features of the samples and {reference} of the reference", "the same number",
                        "choose the feature network of the reference with --extractor")


# -- digits ------------------------------------------------------------------------------------------------------


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
