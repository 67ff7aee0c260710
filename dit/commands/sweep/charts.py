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
    found = []
    for axis, of in AXES.items():
        values = {of(point.setting) for point in points}
        if len(values) > 1:
            found.append(axis)
    return found


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

    best = points[ranking.best]
    first = best.first.name
    position = AXES[scale]
    best_position = position(best.setting)
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
    text = f"best: {number(best.distance)}"
    figures.mark(axis, (best_position, best.distance), text)

    style = {"color": figures.INK, "linewidth": 0.9, "linestyle": figures.DOTTED}
    for i, name in enumerate(shares):
        cell = cells[i // 2, 2 + i % 2]
        panel = _panel(canvas, cell, scale, parse(name).kind, "higher")
        _draw_shares(panel, lines, name, real, position)
        panel.axvline(best_position, zorder=1, **style)
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
    cell = canvas.add_gridspec(1, 1)[0]
    best = points[ranking.best]
    axis = _panel(canvas, cell, "network calls an image (log)", best.first.name, "lower")
    axis.set_xscale("log")

    others = [axis for axis in LABELS if axis != "steps"]
    lines = lines_of(points, others, share_unguided=False)
    _draw_distances(axis, lines, real, lambda point: point.evaluations)
    figures.plain_ticks(axis, costs)
    ordered = [points[i] for i in ranking.order]
    _draw_frontier(axis, frontier(ordered), varied(points))
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

    axis = axes[0]
    best = points[ranking.best]
    # unguided points have no interval, so one of the guided points must be chosen
    interval = best.setting.cfg_interval
    if best.setting.cfg_scale == 1:
        ordered = [points[i] for i in ranking.order]
        alike = [point for point in ordered if _same_sampling(point, best)]
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
    setting = point.setting
    others = [of for name, of in AXES.items() if name not in (axis, "interval")]
    if point.first.value is None:
        return False
    if any(of(setting) != of(best.setting) for of in others):
        return False
    return axis == "interval" or setting.cfg_scale == 1 or setting.cfg_interval == interval


def _same_sampling(one: Point, other: Point) -> bool:
    values = [AXES[axis] for axis in SAMPLING]
    return all(of(one.setting) == of(other.setting) for of in values)


# -- lines -----------------------------------------------------------------------------------------


def lines_of(
    points: Sequence[Point], axes: Sequence[str], share_unguided: bool
) -> dict[str, list[Point]]:
    """Return groups of points that agree on some axes, by label, that of the best point first.

    Args:
        share_unguided: points without guidance belong to the line of every interval.
    """
    named = [axis for axis in axes if axis in varied(points)]
    unguided: list[Point] = []
    if share_unguided:
        unguided = [point for point in points if point.setting.cfg_scale == 1]

    lines: dict[str, list[Point]] = {}
    for point in points:
        if point not in unguided:
            label = ", ".join(words(axis, point.setting) for axis in named)
            lines.setdefault(label, []).append(point)
    for line in lines.values():
        first = line[0]
        line += [point for point in unguided if _same_sampling(point, first)]

    def best(label: str) -> float:
        return min(point.distance for point in lines[label])

    return {label: lines[label] for label in sorted(lines, key=best)}


def _draw_distances(
    axis: Any, lines: Mapping[str, Sequence[Point]], real: Mapping[str, RealVsReal], x: Number
) -> None:
    """Draw lines, the best in colour and with their intervals, over the band of real images."""
    known = {
        label: [point for point in line if point.first.value is not None]
        for label, line in lines.items()
    }
    points = [point for line in known.values() for point in line]
    values = [point.distance for point in points]
    # distances of 5 and 300 on a linear axis would hide all differences at the best ones
    if max(values) > WIDE * min(values) > 0:
        axis.set_yscale("log")
    _draw_band(axis, real.get(points[0].first.name))

    for i, (label, line) in enumerate(known.items()):
        has_band = i == 0 or len(lines) <= BANDED
        marks: list[figures.Point] = []
        for point in line:
            low, high = (point.interval if has_band else None) or (None, None)
            marks.append((x(point), point.distance, low, high))

        if i < COLOURED and marks:
            figures.draw_line(axis, i, label, marks)
        elif marks:
            others = f"{len(lines) - COLOURED} others" if i == COLOURED else None
            ordered = sorted(mark[:2] for mark in marks)
            xs, ys = zip(*ordered, strict=True)
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
    coloured = [*lines.items()][:COLOURED]
    for i, (label, line) in enumerate(coloured):
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
    dashes = (0, (4, 3))
    line = {"color": figures.INK, "linewidth": 1.1, "linestyle": dashes}
    axis.step(x, y, where="post", label="frontier", zorder=4, **line)
    ring = {"markerfacecolor": "none", "markeredgecolor": figures.INK}
    axis.plot(x, y, "o", markersize=12, zorder=5, **ring)

    # from the best one backwards, so that it is always named
    every = -(-len(points) // NAMED)
    style = {
        "textcoords": "offset points",
        "ha": "center",
        "va": "top",
        "fontsize": 8,
        "linespacing": 1.15,
        "color": figures.INK,
    }
    for point in points[::-1][::every]:
        text = "\n".join(words(name, point.setting) for name in axes)
        corner = (point.evaluations, point.distance)
        axis.annotate(text, corner, (0, -11), zorder=6, **style)
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
