"""The best point of a sweep, and which others may be as good."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dit.commands.sweep.points import Point, Setting, classifier_scale
from dit.evaluation.metrics.bootstrap import NORMAL_95


@dataclass(frozen=True)
class Ranking:
    """Points by distance.

    Args:
        order: indices of the points that have a distance, best first.
        differences: by index, the interval of how much further away it is than the best; none without replicates.
        tied: indices of those that can not be told apart from the best, cheapest first.
        edges: ends of the sweep at which the best lies, as (axis, "largest" or "smallest", value).
    """

    order: list[int]
    differences: dict[int, tuple[float, float]]
    tied: list[int]
    edges: list[tuple[str, str, float]]

    @property
    def best(self) -> int:
        """Index of the point with the least distance."""
        return self.order[0]

    def cheapest(self, points: Sequence[Point]) -> int:
        """Index of the best or one tied with it that takes the fewest network calls, the better one of equals."""
        return min(
            [self.best, *self.tied], key=lambda i: (points[i].evaluations, points[i].distance)
        )


def rank(points: Sequence[Point]) -> Ranking:
    """Compare every point with the best one by their replicates, which are of the same resamples: in pairs."""
    order = sorted(
        (i for i, point in enumerate(points) if point.first.value is not None),
        key=lambda i: points[i].distance,
    )
    if not order:
        return Ranking([], {}, [], [])
    best = points[order[0]]
    differences = {i: paired_interval(points[i], best) for i in order[1:] if best.replicates}
    tied = sorted(
        (i for i, (low, _) in differences.items() if low <= 0), key=lambda i: points[i].evaluations
    )
    return Ranking(order, differences, tied, _edges([p.setting for p in points], best.setting))


def paired_interval(point: Point, best: Point) -> tuple[float, float]:
    """95% interval of how much larger the distance of `point` is.

    The replicates of both are of the same resamples, and the images of the same seeds, so noise that both share cancels
    in their difference; it is centred on the difference found, for the reason that `uncertainty.interval` has.
    """
    differences = [
        one - other for one, other in zip(point.replicates, best.replicates, strict=True)
    ]
    found, reach = point.distance - best.distance, NORMAL_95 * statistics.stdev(differences)
    return found - reach, found + reach


def _edges(settings: Sequence[Setting], best: Setting) -> list[tuple[str, str, float]]:
    """Where better settings may lie beyond the sweep; not below scale 1, where guidance ends."""
    scales = [setting.cfg_scale for setting in settings]
    steps = [setting.steps or 0 for setting in settings if setting.sampler == best.sampler]
    weights = [classifier_scale(setting) for setting in settings]
    lengths = [setting.ema_length or 0.0 for setting in settings]
    axes = (
        ("cfg-scale", scales, best.cfg_scale, 1.0),
        ("classifier-scale", weights, classifier_scale(best), 0.0),
        ("ema-length", lengths, best.ema_length or 0.0, 0.0),
        ("steps", steps, best.steps or 0, 1),
    )
    found: list[tuple[str, str, float]] = []
    for axis, values, value, least in axes:
        if min(values) < value == max(values):
            found.append((axis, "largest", value))
        if least < value == min(values) < max(values):
            found.append((axis, "smallest", value))
    return found
