"""Scores of samples against a reference, in the features of one network.

A score that cannot be computed has no value and a reason; it is never 0 or NaN.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.distributed.device import with_float64
from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.inputs.features import Features
from dit.evaluation.metrics.frechet import Gaussian, fit, frechet
from dit.evaluation.metrics.precision_recall import DENSITY_NEIGHBOURS, NEIGHBOURS, manifold

IS_NAMES = ("IS", "IS (torch-fidelity)")
NAMES = ("FID", "sFID", "KID", "precision", "recall", "density", "coverage", *IS_NAMES)
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
KID_LEAST = 20
PRC_REFERENCE = 10_000  # reference images of precision, recall, density and coverage, as in ADM
IS_SPLIT = 5_000  # images in one split of the Inception score, as in ADM
IS_SPLITS = 10  # as in torch-fidelity, of shuffled images
REAL_VS_REAL_SPLITS = 5  # random splits of real images
SEED = 2020  # of subsets and shuffling; torch-fidelity's own


@dataclass(frozen=True)
class Score:
    """One score, or the reason why it is not available.

    Args:
        direction: "lower" or "higher", whichever is better.
        samples, reference: numbers of images compared; None where the reference does not say.
        deviation: standard deviation over subsets or splits.
        note: what to know when reading the value.
    """

    name: str
    value: float | None
    direction: Literal["lower", "higher"] = field(metadata={"json": "better"})
    samples: int
    reference: int | None = None
    deviation: float | None = None
    reason: str | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values by the keys of report.json."""
        values = dataclasses.asdict(self)
        fields = dataclasses.fields(self)
        return {one.metadata.get("json", one.name): values[one.name] for one in fields}


@dataclass(frozen=True)
class RealVsReal:
    """One score over random splits of real images: `samples` of them against `reference` others."""

    low: float
    mean: float
    high: float
    splits: int
    samples: int
    reference: int | None


@dataclass(frozen=True)
class Target:
    """A reference in the features of one network; None for what the reference does not have.

    Args:
        values: features of reference images, [M, D].
        gaussian: fitted to such features, or published; `spatial`: the same of spatial features.
        missing: why any of them is None.
        count: number of images that the Gaussians were fitted to, where known.
    """

    values: Tensor | None = None
    gaussian: Gaussian | None = None
    spatial: Gaussian | None = None
    missing: str = ""
    count: int | None = None

    @classmethod
    def of(cls, reference: Features) -> "Target":
        """Fit the Gaussians of reference images."""
        count = len(reference)
        if count < 2:
            missing = f"needs at least 2 reference images, has {count}"
            return cls(reference.values, missing=missing, count=count)

        spatial = None if reference.spatial is None else fit(reference.spatial)
        missing = "the reference has no spatial features"
        return cls(reference.values, fit(reference.values), spatial, missing, count)


def score_names(extractor: str) -> tuple[str, ...]:
    """Return the names of all scores of one feature network; only Inception's is called FID."""
    return tuple(_full_name(name, extractor) for name in NAMES)


def _full_name(name: str, extractor: str) -> str:
    if extractor == INCEPTION:
        return name
    score, _, convention = name.replace("FID", "FD").partition(" ")
    return f"{score}({extractor}) {convention}".rstrip()


def is_frechet(score: str) -> bool:
    """Return whether a score of this name is a Fréchet distance."""
    return score.split("(")[0] in ("FID", "sFID", "FD", "sFD")


def compute_scores(
    samples: Features, target: Target, extractor: str, device: torch.device
) -> dict[str, Score]:
    """Return all scores by name, in the order of `score_names`; sFID only with spatial features.

    Args:
        extractor: name of the feature network.
        device: where distances between features are computed.
    """
    found = [frechet_distance("FID", samples.values, target.gaussian, target)]
    if samples.spatial is not None:
        found.append(frechet_distance("sFID", samples.spatial, target.spatial, target))
    found.append(kernel_distance(samples.values, target, device))
    found += neighbour_scores(samples.values, target, device)
    found += inception_scores(samples, extractor)

    scores = {}
    for score in found:
        name = _full_name(score.name, extractor)
        scores[name] = dataclasses.replace(score, name=name)
    return scores


# -- real against real -----------------------------------------------------------------------------


def compute_real_vs_real(
    reference: Features, count: int, extractor: str, device: torch.device
) -> dict[str, RealVsReal]:
    """Score `count` real images, at most half of the reference, against the rest, in random splits.

    Scores that are not available are skipped. With `count` = M of M images this compares M / 2
    with M / 2: about twice the Fréchet distance of a perfect model's M samples to all M.
    """
    count = min(count, len(reference) // 2)
    if count == 0:
        return {}

    generator = np.random.default_rng(SEED)
    splits: list[dict[str, Score]] = []
    name = f"real vs. real ({extractor})"
    for _ in tqdm(range(REAL_VS_REAL_SPLITS), desc=name, unit="split", delay=2):
        order = generator.permutation(len(reference))
        chosen = torch.zeros(len(reference), dtype=torch.bool)
        chosen[order[:count]] = True
        splits.append(_split_scores(reference, chosen, extractor, device))

    ranges = {name: _range([scores[name] for scores in splits]) for name in splits[0]}
    return {name: values for name, values in ranges.items() if values}


def _split_scores(
    reference: Features, chosen: Tensor, extractor: str, device: torch.device
) -> dict[str, Score]:
    """Score the images that `chosen` [M] marks against the others."""
    values = reference.values
    spatial = reference.spatial
    others = ~chosen
    rest = int(others.sum())
    target = Target(
        values[others],
        fit(values, others.double()) if rest > 1 else None,
        count=rest,
        missing=f"needs at least 2 reference images, has {rest}",
    )
    logits = None if reference.logits is None else reference.logits[chosen]
    samples = Features(values[chosen], logits)
    scores = compute_scores(samples, target, extractor, device)

    if spatial is not None and rest > 1 and len(samples) > 1:
        # Only moments of spatial features count: weights select rows without a copy.
        name = _full_name("sFID", extractor)
        score = Score(name, None, "lower", len(samples), rest)
        gaussian = fit(spatial, others.double())
        scores[name] = _frechet(score, lambda: fit(spatial, chosen.double()), gaussian)
    return scores


def _range(scores: Sequence[Score]) -> RealVsReal | None:
    """Summarise one score over all splits; None if any split has no value."""
    values = [score.value for score in scores if score.value is not None]
    if len(values) < len(scores):
        return None
    first = scores[0]
    mean = float(np.mean(values))
    return RealVsReal(min(values), mean, max(values), len(values), first.samples, first.reference)


# -- single scores ---------------------------------------------------------------------------------


def frechet_distance(
    name: str, samples: Tensor, reference: Gaussian | None, target: Target
) -> Score:
    """Return the FID (1706.08500) of samples [N, D]; of spatial features, the sFID (2103.03841).

    Args:
        reference: the Gaussian of `target` to compare with.
    """
    score = Score(name, None, "lower", len(samples), target.count)
    if reference is None:
        return _unavailable(score, target.missing)
    if len(samples) < 2:
        return _unavailable(score, f"needs at least 2 samples, has {len(samples)}")
    return _frechet(score, lambda: fit(samples), reference)


def _frechet(score: Score, fitted: Callable[[], Gaussian], reference: Gaussian) -> Score:
    try:
        value = frechet(fitted(), reference)
    except torch.linalg.LinAlgError as error:
        return _unavailable(score, f"the arithmetic failed ({error})")

    least = min(score.samples, score.reference or score.samples)
    if least > reference.width:
        return _available(score, value)
    note = f"{least} images for {reference.width} features"
    return _available(score, value, note=f"{note}: biased upwards, compare at equal N only")


def kernel_distance(samples: Tensor, target: Target, device: torch.device) -> Score:
    """Return the KID: unbiased squared MMD with a cubic kernel, mean over subsets (1801.01401).

    It is computed in float64, on the subsets that torch-fidelity draws.
    """
    reference = target.values
    if reference is None:
        return _unavailable(Score("KID", None, "lower", len(samples)), target.missing)
    score = Score("KID", None, "lower", len(samples), len(reference))
    if reason := _too_few(samples, reference, KID_LEAST):
        return _unavailable(score, reason)

    size = kid_subset_size(len(samples), len(reference))
    generator = np.random.RandomState(SEED)
    device = with_float64(device)

    # In float64: at Inception's scale float32 is off by 1%.
    def subset(features: Tensor) -> Tensor:
        rows = generator.choice(len(features), size, replace=False)
        return features[rows].to(device).double()

    distances = [squared_mmd(subset(samples), subset(reference)) for _ in range(KID_SUBSETS)]
    note = f"{KID_SUBSETS} subsets of {size}"
    return _available(score, float(np.mean(distances)), float(np.std(distances)), note)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Return the unbiased squared MMD of x and y [n, D] under the kernel (x y / D + 1)^3."""
    count, width = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        base = torch.addmm(a.new_ones(1), a, b.T, alpha=1 / width)
        return base * base * base

    def pairs(a: Tensor) -> Tensor:
        values = kernel(a, a)
        # Unbiased: pairs of a point with itself do not count.
        return values.sum() - values.trace()

    # 1801.01401, Eq. 3 and 4
    within = (pairs(x) + pairs(y)) / (count * (count - 1))
    return float(within - 2 * kernel(x, y).mean())


def kid_subset_size(samples: int, reference: int) -> int:
    """Return 1000, or half of the smaller set: larger subsets of it would nearly coincide."""
    return min(KID_SUBSET_SIZE, samples // 2, reference // 2)


def neighbour_scores(samples: Tensor, target: Target, device: torch.device) -> list[Score]:
    """Return precision and recall (1904.06991), density and coverage (2002.09797)."""
    reference = target.values
    if reference is not None and len(reference) > PRC_REFERENCE:
        reference = reference[_subset(len(reference), PRC_REFERENCE)]

    count = None if reference is None else len(reference)
    names = ("precision", "recall", "density", "coverage")
    scores = [Score(name, None, "higher", len(samples), count) for name in names]
    if reference is None:
        return [_unavailable(score, target.missing) for score in scores]

    # A ball reaches to the k-th nearest other image, so that k + 1 images are needed.
    few = _too_few(samples, reference, NEIGHBOURS + 1)
    fewer = _too_few(samples, reference, DENSITY_NEIGHBOURS + 1)
    if few:
        found = dict.fromkeys(names, 0.0)
    else:
        found = dataclasses.asdict(manifold(samples, reference, device))
    reasons = (few, few, fewer, fewer)
    return [
        _unavailable(score, reason) if reason else _available(score, found[score.name])
        for score, reason in zip(scores, reasons, strict=True)
    ]


def _subset(count: int, most: int) -> np.ndarray:
    """Return at most `most` of `count` indices, always the same ones."""
    order = np.random.default_rng(SEED).permutation(count)
    return np.sort(order[:most])


def inception_scores(samples: Features, extractor: str) -> list[Score]:
    """Return exp of the mean KL between p(class | image) and p(class) (1606.03498), two ways.

    ADM: splits of 5,000 images in order, the last one shorter. torch-fidelity: 10 splits, shuffled.
    """
    count = len(samples)
    adm, fidelity = (Score(name, None, "higher", count) for name in IS_NAMES)
    if samples.logits is None:
        reason = f"{extractor} has no classifier"
        return [_unavailable(adm, reason), _unavailable(fidelity, reason)]

    in_order = [*range(0, count, IS_SPLIT), count]
    order = np.random.RandomState(SEED).permutation(count)
    equal = [i * count // IS_SPLITS for i in range(IS_SPLITS + 1)]
    return [
        _inception_score(adm, samples.logits, in_order, least=2),
        _inception_score(fidelity, samples.logits[order], equal, least=IS_SPLITS),
    ]


def _inception_score(score: Score, logits: Tensor, bounds: Sequence[int], least: int) -> Score:
    """Compute the mean over splits of `logits` [N, K] between the bounds."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    if len(logits) < least:
        return _unavailable(score, f"needs at least {least} samples, has {len(logits)}")

    values = []
    for start, stop in itertools.pairwise(bounds):
        metrics = isc_features_to_metric(logits[start:stop], splits=1, shuffle=False)
        values.append(metrics[KEY_METRIC_ISC_MEAN])
    if len(values) == 1:
        return _available(score, float(values[0]), note="1 split")
    note = f"{len(values)} splits"
    return _available(score, float(np.mean(values)), float(np.std(values)), note)


def _too_few(samples: Tensor, reference: Tensor, least: int) -> str | None:
    if min(len(samples), len(reference)) >= least:
        return None
    has = f"{len(samples)} samples and {len(reference)} reference images"
    return f"needs at least {least} images on both sides, has {has}"


def _unavailable(score: Score, reason: str) -> Score:
    return dataclasses.replace(score, reason=reason)


def _available(
    score: Score, value: float, deviation: float | None = None, note: str | None = None
) -> Score:
    if not math.isfinite(value):
        return _unavailable(score, f"the arithmetic gave {value}")
    return dataclasses.replace(score, value=value, deviation=deviation, note=note)
