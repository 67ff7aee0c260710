"""The best point of a sweep, and which others may be as good."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dit.commands.sweep.points import Point, Setting, classifier_scale
from dit.evaluation.metrics.bootstrap import NORMAL_95


@dataclass(frozen=True)
class Ranking:
    """Points by distance; all numbers in it are indices of points.

    Args:
        order: the points that have a distance, best first.
        differences: intervals of how much larger the distance is than the best one; needs
            replicates.
        tied: points that cannot be told from the best, cheapest first.
        edges: ends of the sweep at which the best lies: axis, "largest" or "smallest", value.
    """

    order: list[int]
    differences: dict[int, tuple[float, float]]
    tied: list[int]
    edges: list[tuple[str, str, float]]

    @property
    def best(self) -> int:
        return self.order[0]

    def cheapest(self, points: Sequence[Point]) -> int:
        """Return the best point or one tied with it: that of fewest calls, then least distance."""
        candidates = [self.best, *self.tied]
        return min(candidates, key=lambda i: (points[i].evaluations, points[i].distance))


def rank(points: Sequence[Point]) -> Ranking:
    """Compare every point with the best one, in pairs of replicates of the same resamples."""
    known = [i for i, point in enumerate(points) if point.first.value is not None]
    order = sorted(known, key=lambda i: points[i].distance)
    if not order:
        return Ranking([], {}, [], [])

    best = points[order[0]]
    differences = {}
    if best.replicates:
        differences = {i: paired_interval(points[i], best) for i in order[1:]}
    tied = [i for i, (low, _) in differences.items() if low <= 0]
    tied.sort(key=lambda i: points[i].evaluations)
    settings = [point.setting for point in points]
    edges = _edges(settings, best.setting)
    return Ranking(order, differences, tied, edges)


def paired_interval(point: Point, best: Point) -> tuple[float, float]:
    """Return the 95% interval of how much larger the distance of `point` is.

    The replicates of both are of the same resamples, and the images of the same seeds, so noise
    that both share cancels in their difference. The interval is centred on the measured
    difference, for the reason that `bootstrap.interval` gives.
    """
    pairs = zip(point.replicates, best.replicates, strict=True)
    # the variance of the differences, not the sum of both variances: shared noise cancels
    ci95 = NORMAL_95 * statistics.stdev(one - other for one, other in pairs)
    difference = point.distance - best.distance
    return difference - ci95, difference + ci95


def _edges(settings: Sequence[Setting], best: Setting) -> list[tuple[str, str, float]]:
    """Return where better settings may lie beyond the sweep; below scale 1 there is no guidance."""
    same_sampler = [setting for setting in settings if setting.sampler == best.sampler]
    axes = (
        ("cfg-scale", settings, lambda setting: setting.cfg_scale, 1.0),
        ("classifier-scale", settings, classifier_scale, 0.0),
        ("ema-length", settings, lambda setting: setting.ema_length or 0.0, 0.0),
        ("steps", same_sampler, lambda setting: setting.steps or 0, 1),
    )
    edges: list[tuple[str, str, float]] = []
    for axis, others, of, least in axes:
        values = [of(setting) for setting in others]
        value = of(best)
        if min(values) < value == max(values):
            edges.append((axis, "largest", value))
        # at `least` there is nothing below to try
        if least < value == min(values) < max(values):
            edges.append((axis, "smallest", value))
    return edges
