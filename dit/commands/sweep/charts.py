"""Charts of a sweep: scores over guidance, quality over cost, images at several settings."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from dit.commands.sweep.points import AXES, Point, Setting, picture_file, words
from dit.commands.sweep.ranking import Ranking
from dit.evaluation.metrics.compute import RealVsReal
from dit.report import figures
from dit.report.score_names import parse
from dit.report.text import arrow, number
from dit.utils.pictures import grid

REAL, FAINT = "#8fcdb4", "#d5d9e0"
WIDE = 12  # largest distance over smallest, from which the axis is logarithmic
PANELS = ("precision", "density", "recall", "coverage")  # fidelity above, diversity below
COLOURED = 7  # lines in colour, the best first
BANDED = 2  # lines with a band; of more lines only the best has one
NAMED = 6  # points of the frontier by name
ROWS = 16  # of the strip

Number = Callable[[Point], float]

LABELS = ("sampler", "steps", "interval", "cfg-scale", "classifier-scale", "ema-length")
"""The order of axes in the label of a line."""
SAMPLING = ("sampler", "steps", "classifier-scale", "ema-length")
"""Axes other than guidance."""


def varied(points: Sequence[Point]) -> list[str]:
    """Return the axes on which points differ."""
    return [axis for axis, of in AXES.items() if len({of(point.setting) for point in points}) > 1]


def over_scale(
    points: Sequence[Point],
    ranking: Ranking,
    real: Mapping[str, RealVsReal],
    scale: str = "cfg-scale",
) -> Image.Image | None:
    """Draw the distance and shares of the manifolds over a scale; None where it does not vary.

    Args:
        scale: cfg-scale, classifier-scale or ema-length.
    """
    if scale not in varied(points) or not ranking.order:
        return None
    best, position = points[ranking.best], AXES[scale]
    first = best.first.name
    of_network = {parse(name)[:2]: name for name in best.scores if not parse(name).convention}
    panels = [(panel, parse(first).network) for panel in PANELS]
    shares = [of_network[panel] for panel in panels if panel in of_network]

    # two columns for the distance, and one for each pair of shares
    canvas = figures.new_figure(11.0 if shares else 7.2, 4.7)
    cells = canvas.add_gridspec(2, 4 if shares else 2)
    others = [axis for axis in LABELS if axis != scale]
    lines = lines_of(points, others, share_unguided=scale == "cfg-scale")
    axis = _panel(canvas, cells[:, :2], scale, first, "lower")
    _draw_distances(axis, lines, real, lambda point: position(point.setting))
    figures.mark(axis, (position(best.setting), best.distance), f"best: {number(best.distance)}")

    for i, name in enumerate(shares):
        panel = _panel(canvas, cells[i // 2, 2 + i % 2], scale, parse(name).kind, "higher")
        _draw_shares(panel, lines, name, real, position)
        style = {"color": figures.INK, "linewidth": 0.9, "linestyle": figures.DOTTED}
        panel.axvline(position(best.setting), zorder=1, **style)
    _draw_legend(canvas, axis)
    return figures.to_image(canvas)


def over_evaluations(
    points: Sequence[Point], ranking: Ranking, real: Mapping[str, RealVsReal]
) -> Image.Image | None:
    """Draw the distance over network calls an image, with the frontier.

    None where costs are equal, or differ by guidance alone.
    """
    costs = sorted({point.evaluations for point in points})
    if len(costs) < 2 or not ranking.order:
        return None
    if {*varied(points)} <= {"cfg-scale", "classifier-scale", "ema-length"}:
        return None

    canvas = figures.new_figure(11.0, 4.7)
    cell, title = canvas.add_gridspec(1, 1)[0], "network calls an image (log)"
    axis = _panel(canvas, cell, title, points[ranking.best].first.name, "lower")
    axis.set_xscale("log")
    lines = lines_of(points, [axis for axis in LABELS if axis != "steps"], share_unguided=False)
    _draw_distances(axis, lines, real, lambda point: point.evaluations)
    figures.plain_ticks(axis, costs)
    _draw_frontier(axis, frontier([points[i] for i in ranking.order]), varied(points))
    _draw_legend(canvas, axis)
    return figures.to_image(canvas)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points with no cheaper or equally cheap one of less distance, cheapest first."""
    found: list[Point] = []
    # among equal costs the best comes first and hides the others
    for point in sorted(points, key=lambda p: (p.evaluations, p.distance)):
        if not found or point.distance < found[-1].distance:
            found.append(point)
    return found


# -- the same images -------------------------------------------------------------------------------


def strip(points: Sequence[Point], ranking: Ranking, out: Path) -> tuple[str, Image.Image | None]:
    """Return an axis and the same images along it, all else as in the best point.

    It is the first axis, in the order of `AXES`, on which points differ; no images without one.
    """
    axes = varied(points)
    if not axes or not ranking.order:
        return "", None
    best, axis = points[ranking.best], axes[0]
    # unguided points have no interval, so one of the guided points must be chosen
    interval = best.setting.cfg_interval
    if best.setting.cfg_scale == 1:
        alike = (points[i] for i in ranking.order if _same_sampling(points[i], best))
        guided = next((point for point in alike if point.setting.cfg_scale != 1), best)
        interval = guided.setting.cfg_interval

    along = [point for point in points if _differs_on(axis, point, best, interval)]
    along.sort(key=lambda point: AXES[axis](point.setting))
    step = -(-len(along) // ROWS)
    # every `step`-th row, so that the best one is among them
    shown = along[along.index(best) % step :: step]

    rows, labels = [], []
    for point in shown:
        with Image.open(picture_file(out, point.key)) as picture:
            rows.append(pil_to_tensor(picture.convert("RGB")))
        mark = ", best" if point is best else ""
        labels.append(f"{words(axis, point.setting)}: {number(point.distance)}{mark}")
    return axis, grid(torch.stack(rows), labels, columns=1)


def _differs_on(axis: str, point: Point, best: Point, interval: tuple[float, float]) -> bool:
    """Whether a point equals the best but for an axis, with guidance in `interval` if any."""
    others = [of for name, of in AXES.items() if name not in (axis, "interval")]
    if point.first.value is None or any(of(point.setting) != of(best.setting) for of in others):
        return False
    setting = point.setting
    return axis == "interval" or setting.cfg_scale == 1 or setting.cfg_interval == interval


def _same_sampling(one: Point, other: Point) -> bool:
    return all(AXES[axis](one.setting) == AXES[axis](other.setting) for axis in SAMPLING)


# -- lines -----------------------------------------------------------------------------------------


def lines_of(
    points: Sequence[Point], axes: Sequence[str], share_unguided: bool
) -> dict[str, list[Point]]:
    """Return groups of points that agree on some axes, by label, that of the best point first.

    Args:
        share_unguided: points without guidance belong to the line of every interval.
    """
    named = [axis for axis in axes if axis in varied(points)]
    unguided = [point for point in points if share_unguided and point.setting.cfg_scale == 1]
    lines: dict[str, list[Point]] = {}
    for point in points:
        if point not in unguided:
            label = ", ".join(words(axis, point.setting) for axis in named)
            lines.setdefault(label, []).append(point)
    for line in lines.values():
        line += [point for point in unguided if _same_sampling(point, line[0])]

    def best(label: str) -> float:
        return min(point.distance for point in lines[label])

    return {label: lines[label] for label in sorted(lines, key=best)}


def _draw_distances(
    axis: Any, lines: Mapping[str, Sequence[Point]], real: Mapping[str, RealVsReal], x: Number
) -> None:
    """Draw lines, the best in colour and with their intervals, over the band of real images."""
    known = [[p for p in line if p.first.value is not None] for line in lines.values()]
    points = [point for line in known for point in line]
    values = [point.distance for point in points]
    # distances of 5 and 300 on a linear axis would hide all differences at the best ones
    if max(values) > WIDE * min(values) > 0:
        axis.set_yscale("log")
    _draw_band(axis, real.get(points[0].first.name))

    for i, (label, line) in enumerate(zip(lines, known, strict=True)):
        has_band = i == 0 or len(lines) <= BANDED
        ends = [(point.interval if has_band else None) or (None, None) for point in line]
        marks = [(x(p), p.distance, *end) for p, end in zip(line, ends, strict=True)]
        if i < COLOURED and marks:
            figures.draw_line(axis, i, label, marks)
        elif marks:
            others = f"{len(lines) - COLOURED} others" if i == COLOURED else None
            xs, ys, *_ = zip(*sorted(marks, key=lambda mark: mark[:2]), strict=True)
            axis.plot(xs, ys, color=FAINT, marker=".", zorder=1, label=others)


def _draw_shares(
    axis: Any,
    lines: Mapping[str, Sequence[Point]],
    name: str,
    real: Mapping[str, RealVsReal],
    scale: Callable[[Setting], float],
) -> None:
    """Draw one of precision, recall, density and coverage."""
    _draw_band(axis, real.get(name))
    for i, (label, line) in enumerate([*lines.items()][:COLOURED]):
        values = [(scale(point.setting), point.value(name)) for point in line]
        marks = [(x, y, None, None) for x, y in values if y is not None]
        if marks:
            figures.draw_line(axis, i, label, marks)


def _draw_band(axis: Any, real: RealVsReal | None) -> None:
    if real:
        style = {"color": REAL, "alpha": 0.45, "linewidth": 0, "zorder": 0}
        axis.axhspan(real.low, real.high, label="real vs. real", **style)


def _draw_frontier(axis: Any, points: Sequence[Point], axes: Sequence[str]) -> None:
    """Draw the least distance for the calls spent, as steps, with some of its corners named."""
    x = [point.evaluations for point in points]
    y = [point.distance for point in points]
    line = {"color": figures.INK, "linewidth": 1.1, "linestyle": (0, (4, 3))}
    axis.step(x, y, where="post", label="frontier", zorder=4, **line)
    ring = {"markerfacecolor": "none", "markeredgecolor": figures.INK}
    axis.plot(x, y, "o", markersize=12, zorder=5, **ring)

    # from the best one backwards, so that it is always named
    every = -(-len(points) // NAMED)
    style = {"ha": "center", "va": "top", "fontsize": 8, "linespacing": 1.15}
    for point in points[::-1][::every]:
        text = "\n".join(words(name, point.setting) for name in axes)
        corner, shift = (point.evaluations, point.distance), (0, -11)
        offset = {"textcoords": "offset points", "zorder": 6, "color": figures.INK}
        axis.annotate(text, corner, shift, **offset, **style)
    axis.margins(x=0.08, y=0.22)
    axis.set_ylim(bottom=max(0.0, axis.get_ylim()[0]))


def _panel(canvas: Any, cell: Any, xlabel: str, name: str, direction: str) -> Any:
    axis = figures.new_axis(canvas, xlabel, (cell,))
    figures.set_title(axis, f"{name} {arrow(direction)}")
    return axis


def _draw_legend(canvas: Any, axis: Any) -> None:
    """Draw a legend of all named lines and bands below all panels."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        style = {"frameon": False, "fontsize": 9, "labelcolor": figures.INK}
        columns = min(5, len(labels))
        canvas.legend(handles, labels, loc="outside lower center", ncols=columns, **style)
