"""One sentence about scores: how near the samples are to real images, and what they lack.

Each score is compared with what real images score against real images, at as many images:

- distance (FID or FD): good up to 1.5 times the real one, bad from 4 times;
- precision, the quality: good from 0.9 of the real one, bad below 0.7;
- coverage, or recall where there is none, the variety: likewise.

Without real against real, shares are compared with 1, and a distance is only named.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dit.evaluation.metrics.compute import RealVsReal, is_frechet
from dit.report.score_names import parse
from dit.report.text import number

GOOD, FAIR, BAD = 0, 1, 2
DISTANCE_LIMITS = 1.5, 4.0  # times the real one
SHARE_LIMITS = 0.9, 0.7  # of the real one
WORDS = {
    "precision": "of the samples lie among real images",
    "coverage": "of the real images have a sample nearby",
    "recall": "of the real images lie among the samples",
}
MANY_COPIES = 5.0  # times the share of real images that are as near to another one


@dataclass(frozen=True)
class Copies:
    """The share of samples that are near-copies of training images, and the same of real images."""

    share: float
    real_share: float


def verdict(
    values: Mapping[str, float | None],
    real: Mapping[str, RealVsReal],
    copies: Sequence[Copies] = (),
) -> str:
    """Return the sentence, or "" where no score says anything.

    Args:
        values: by the name of each score; those of the first network count.
        real: what real images score, by the same names, where known.
        copies: by each measure of nearness.
    """
    found = _first_network(values)
    parts: list[str] = []
    grades: dict[str, int] = {}
    for kind in ("distance", "precision", "coverage"):
        if kind in found:
            name, value = found[kind]
            grade, text = _judge(kind, name, value, real.get(name))
            parts.append(text)
            if grade is not None:
                grades[kind] = grade

    worst = max(copies, key=lambda one: one.share, default=None)
    if worst and worst.share > MANY_COPIES * worst.real_share:
        parts.append(f"{worst.share:.0%} of the samples are near-copies of training images")
    if not parts:
        return ""
    headline = _headline(grades)
    text = ", ".join(parts)
    return f"{headline}: {text}." if headline else f"{text[0].upper()}{text[1:]}."


def _first_network(values: Mapping[str, float | None]) -> dict[str, tuple[str, float]]:
    """Return name and value of distance, precision and coverage, in features of one network."""
    known = {
        name: value for name, value in values.items() if value is not None and math.isfinite(value)
    }
    network = next((parse(name).network for name in known if is_frechet(name)), None)
    found: dict[str, tuple[str, float]] = {}
    for name, value in known.items():
        kind, its_network, _ = parse(name)
        if network is not None and its_network != network:
            continue
        if kind in ("FID", "FD"):
            found["distance"] = name, value
        elif kind in ("precision", "coverage"):
            found[kind] = name, value
        elif kind == "recall":
            found.setdefault("coverage", (name, value))
    return found


def _judge(kind: str, name: str, value: float, real: RealVsReal | None) -> tuple[int | None, str]:
    """Return a grade, where there is one, and the words for a score."""
    if kind == "distance":
        if real is None or real.mean <= 0:
            return None, f"{name} is {number(value)}, with nothing real to compare it with"
        ratio = value / real.mean
        return _grade(ratio, *DISTANCE_LIMITS), f"{name} is {ratio:.1f} times that of real images"

    best = real.mean if real and real.mean > 0 else 1.0
    beside = f" (of other real images: {best:.0%})" if real else ""
    return _grade(value / best, *SHARE_LIMITS), f"{value:.0%} {WORDS[parse(name).kind]}{beside}"


def _grade(ratio: float, good: float, bad: float) -> int:
    """Return the grade of a ratio; `good` above `bad` says that higher is better."""
    if good > bad:
        ratio, good, bad = -ratio, -good, -bad
    if ratio <= good:
        return GOOD
    return FAIR if ratio < bad else BAD


def _headline(grades: Mapping[str, int]) -> str:
    """Return the first words, by what is worst."""
    if not grades or "distance" not in grades:
        return ""
    quality, variety = grades.get("precision", GOOD), grades.get("coverage", GOOD)
    if max(grades.values()) == GOOD:
        return "As good as real images by these scores"
    if quality < variety and variety == BAD:
        return "The samples lack variety"
    if variety < quality and quality == BAD:
        return "Many samples do not look real"
    if max(grades.values()) == BAD:
        return "Far from real images"
    return "Close to real images, with room left"
