"""Scores of samples against a reference, on features of one network.

A score that can not be computed has no value and says why; it is never 0 or NaN.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.errors import UserError
from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.inputs.features import Features
from dit.evaluation.metrics.frechet import Gaussian, fit, frechet
from dit.evaluation.metrics.precision_recall import DENSITY_NEIGHBOURS, NEIGHBOURS, manifold

NAMES = (
    "FID",
    "sFID",
    "KID",
    "precision",
    "recall",
    "density",
    "coverage",
    "IS",
    "IS (torch-fidelity)",
)
KID_SUBSETS, KID_SUBSET_SIZE, KID_LEAST = 100, 1000, 20
PRC_REFERENCE = 10_000  # reference images of precision, recall, density and coverage, as ADM has it
IS_SPLIT = 5_000  # images in one split of the Inception score, as ADM has it
IS_SPLITS = 10  # as torch-fidelity has it, of shuffled images
FLOOR_SPLITS = 5
SEED = 2020  # of subsets and shuffling; torch-fidelity's own


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


@dataclass(frozen=True)
class Range:
    """What one score was over several random splits of real images: `samples` of them against `reference` others."""

    low: float
    mean: float
    high: float
    splits: int
    samples: int
    reference: int | None


@dataclass(frozen=True)
class Target:
    """What samples are compared with, in the features of one network; None where the reference does not have it.

    Args:
        values: features of reference images, [M, D].
        gaussian: fitted to such features, or published; `spatial`: the same of spatial features.
        missing: why any of them is None.
        count: how many images the Gaussians were fitted to, where known.
    """

    values: Tensor | None = None
    gaussian: Gaussian | None = None
    spatial: Gaussian | None = None
    missing: str = ""
    count: int | None = None

    @classmethod
    def of(cls, reference: Features) -> "Target":
        """Reference images."""
        count = len(reference)
        if count < 2:
            return cls(
                reference.values,
                missing=f"needs at least 2 reference images, has {count}",
                count=count,
            )
        spatial = None if reference.spatial is None else fit(reference.spatial)
        return cls(
            reference.values,
            fit(reference.values),
            spatial,
            "the reference has no spatial features",
            count,
        )


def score_names(extractor: str) -> tuple[str, ...]:
    """The scores by the names that a feature network gives them, in order; only Inception's is called FID."""
    return tuple(_shown(name, extractor) for name in NAMES)


def _shown(name: str, extractor: str) -> str:
    if extractor == INCEPTION:
        return name
    score, _, convention = name.replace("FID", "FD").partition(" ")
    return f"{score}({extractor}) {convention}".rstrip()


def is_frechet(score: str) -> bool:
    """Whether a score of this name is a Fréchet distance."""
    return score.split("(")[0] in ("FID", "sFID", "FD", "sFD")


def compute_scores(
    samples: Features, target: Target, extractor: str, device: torch.device
) -> dict[str, Score]:
    """All scores by their names, in the order of `score_names`; sFID only where there are spatial features.

    Args:
        extractor: name of the feature network; `device`: for distances between features.

    Raises:
        UserError: the reference's features are of another network.
    """
    found = [frechet_distance("FID", samples.values, target.gaussian, target)]
    if samples.spatial is not None:
        found.append(frechet_distance("sFID", samples.spatial, target.spatial, target))
    found.append(kernel_distance(samples.values, target, device))
    found += neighbour_scores(samples.values, target, device)
    found += inception_scores(samples, extractor)
    named = [dataclasses.replace(score, name=_shown(score.name, extractor)) for score in found]
    return {score.name: score for score in named}


def compute_floor(
    reference: Features, count: int, extractor: str, device: torch.device
) -> dict[str, Range]:
    """What real images score: `count` of the reference, at most half, against the rest, in several random splits.

    Scores that are not available are left out. With `count` = M of M images the floor is that of M / 2 against M / 2:
    about twice the Fréchet distance that a perfect model's M samples have to all M.
    """
    count = min(count, len(reference) // 2)
    if count == 0:
        return {}
    generator = np.random.default_rng(SEED)
    found: list[dict[str, Score]] = []
    for _ in tqdm(range(FLOOR_SPLITS), desc=f"floor ({extractor})", unit="split", delay=2):
        chosen = torch.zeros(len(reference), dtype=torch.bool)
        chosen[generator.permutation(len(reference))[:count]] = True
        found.append(_split_scores(reference, chosen, extractor, device))
    ranges = {name: _range([scores[name] for scores in found]) for name in found[0]}
    return {name: values for name, values in ranges.items() if values}


def _split_scores(
    reference: Features, chosen: Tensor, extractor: str, device: torch.device
) -> dict[str, Score]:
    """Scores of the chosen images against the others. Spatial features, of which only moments count, are not copied."""
    values, logits, spatial = reference.values, reference.logits, reference.spatial
    rest = int((~chosen).sum())
    target = Target(
        values[~chosen],
        fit(values, (~chosen).double()) if rest > 1 else None,
        count=rest,
        missing=f"needs at least 2 reference images, has {rest}",
    )
    samples = Features(values[chosen], None if logits is None else logits[chosen])
    scores = compute_scores(samples, target, extractor, device)
    if spatial is not None and rest > 1 and len(samples) > 1:
        score = Score(_shown("sFID", extractor), None, "lower", len(samples), rest)
        scores[score.name] = _frechet(
            score, lambda: fit(spatial, chosen.double()), fit(spatial, (~chosen).double())
        )
    return scores


def _range(scores: Sequence[Score]) -> Range | None:
    """None unless all are there."""
    values = [score.value for score in scores if score.value is not None]
    if len(values) < len(scores):
        return None
    return Range(
        min(values),
        float(np.mean(values)),
        max(values),
        len(values),
        scores[0].samples,
        scores[0].reference,
    )


# -- single scores; features in, Score out -----------------------------------------------------------------------


def frechet_distance(
    name: str, samples: Tensor, reference: Gaussian | None, target: Target
) -> Score:
    """Fréchet distance of the Gaussian fitted to samples [N, D] (1706.08500); of spatial features: sFID (2103.03841).

    Args:
        reference: the Gaussian of `target` to compare with.
    """
    score = Score(name, None, "lower", len(samples), target.count)
    if reference is None:
        return _without(score, target.missing)
    if len(samples) < 2:
        return _without(score, f"needs at least 2 samples, has {len(samples)}")
    check_widths(samples.shape[1], reference.width)
    return _frechet(score, lambda: fit(samples), reference)


def _frechet(score: Score, fitted: Callable[[], Gaussian], reference: Gaussian) -> Score:
    try:
        value = frechet(fitted(), reference)
    except torch.linalg.LinAlgError as error:
        return _without(score, f"the arithmetic failed ({error})")
    width, least = reference.width, min(score.samples, score.reference or score.samples)
    note = (
        f"{least} images for {width} features: biased upwards, compare at equal N only"
        if least <= width
        else None
    )
    return _with(score, value, note=note)


def kernel_distance(samples: Tensor, target: Target, device: torch.device) -> Score:
    """Unbiased squared MMD with a cubic kernel, mean over subsets of at most half the images (1801.01401).

    In float64, and on the subsets that torch-fidelity draws.
    """
    score, reference = _start("KID", "lower", samples, target.values), target.values
    if reference is None:
        return _without(score, target.missing)
    if reason := _too_few(samples, reference, KID_LEAST):
        return _without(score, reason)
    check_widths(samples.shape[1], reference.shape[1])
    size = kid_subset_size(len(samples), len(reference))
    distances = _kernel_distances(samples, reference, size, device)
    note = f"{KID_SUBSETS} subsets of {size}"
    return _with(score, float(np.mean(distances)), deviation=float(np.std(distances)), note=note)


def _kernel_distances(
    samples: Tensor, reference: Tensor, size: int, device: torch.device
) -> list[float]:
    generator = np.random.RandomState(SEED)

    def subset(features: Tensor) -> Tensor:
        return features[generator.choice(len(features), size, replace=False)].to(device).double()

    return [squared_mmd(subset(samples), subset(reference)) for _ in range(KID_SUBSETS)]


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of x and y [n, D] under the kernel (x y / D + 1)^3 (1801.01401, Eq. 3 and 4)."""
    count, width = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        base = torch.addmm(a.new_ones(1), a, b.T, alpha=1 / width)
        return base * base * base

    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y))) / (count * (count - 1))
    return float(within - 2 * kernel(x, y).mean())


def kid_subset_size(samples: int, reference: int) -> int:
    """1000, or half of the smaller set: larger subsets of it would be nearly the same each time."""
    return min(KID_SUBSET_SIZE, samples // 2, reference // 2)


def neighbour_scores(samples: Tensor, target: Target, device: torch.device) -> list[Score]:
    """Precision and recall (1904.06991), density and coverage (2002.09797); see `neighbours.Manifold`."""
    reference = target.values
    if reference is not None and len(reference) > PRC_REFERENCE:
        reference = reference[_subset(len(reference), PRC_REFERENCE)]
    least = {
        "precision": NEIGHBOURS,
        "recall": NEIGHBOURS,
        "density": DENSITY_NEIGHBOURS,
        "coverage": DENSITY_NEIGHBOURS,
    }
    scores = [_start(name, "higher", samples, reference) for name in least]
    if reference is None:
        return [_without(score, target.missing) for score in scores]
    reasons = {
        name: _too_few(samples, reference, neighbours + 1) for name, neighbours in least.items()
    }
    if all(reasons.values()):
        return [_without(score, str(reasons[score.name])) for score in scores]
    check_widths(samples.shape[1], reference.shape[1])
    found = dataclasses.asdict(manifold(samples, reference, device))
    return [
        _without(score, reason)
        if (reason := reasons[score.name])
        else _with(score, found[score.name])
        for score in scores
    ]


def _subset(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices, always the same ones."""
    return np.sort(np.random.default_rng(SEED).permutation(count)[:most])


def inception_scores(samples: Features, extractor: str) -> list[Score]:
    """exp of the mean KL between p(class | image) and p(class), mean over splits (1606.03498).

    Once in splits of 5,000 in order, the last one shorter, as ADM; once in 10 splits, shuffled, as torch-fidelity.
    """
    count = len(samples)
    scores = [Score(name, None, "higher", count) for name in NAMES[-2:]]
    if samples.logits is None:
        return [_without(score, f"{extractor} has no classifier") for score in scores]
    shuffled = np.random.RandomState(SEED).permutation(count)
    equal = [i * count // IS_SPLITS for i in range(IS_SPLITS + 1)]
    return [
        _inception_score(
            scores[0],
            samples.logits,
            np.arange(count),
            [*range(0, count, IS_SPLIT), count],
            least=2,
        ),
        _inception_score(scores[1], samples.logits, shuffled, equal, least=IS_SPLITS),
    ]


def _inception_score(
    score: Score, logits: Tensor, order: np.ndarray, bounds: Sequence[int], least: int
) -> Score:
    """Over the splits between the bounds, of the logits in that order."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    if len(logits) < least:
        return _without(score, f"needs at least {least} samples, has {len(logits)}")
    values = [
        isc_features_to_metric(logits[order[start:stop]], splits=1, shuffle=False)[
            KEY_METRIC_ISC_MEAN
        ]
        for start, stop in itertools.pairwise(bounds)
    ]
    note = "1 split" if len(values) == 1 else f"{len(values)} splits"
    return _with(
        score, float(np.mean(values)), float(np.std(values)) if len(values) > 1 else None, note
    )


def _start(name: str, better: str, samples: Tensor, reference: Tensor | None) -> Score:
    return Score(name, None, better, len(samples), None if reference is None else len(reference))


def _too_few(samples: Tensor, reference: Tensor, least: int) -> str | None:
    if min(len(samples), len(reference)) >= least:
        return None
    return f"needs at least {least} images on both sides, has {len(samples)} samples and {len(reference)} reference images"


def _without(score: Score, reason: str) -> Score:
    return dataclasses.replace(score, reason=reason)


def _with(
    score: Score, value: float, deviation: float | None = None, note: str | None = None
) -> Score:
    if not math.isfinite(value):
        return _without(score, f"the arithmetic gave {value}")
    return dataclasses.replace(score, value=value, deviation=deviation, note=note)


def check_widths(samples: int, reference: int) -> None:
    """Refuse features of different networks."""
    if samples != reference:
        raise UserError(
            f"{samples} features of the samples and {reference} of the reference",
            "the same number",
            "choose the feature network of the reference with --extractor",
        )
