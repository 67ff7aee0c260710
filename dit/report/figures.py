"""Charts: distances by number of samples, scores during training; and the style of all charts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dit.evaluation.metrics.bootstrap import Extrapolation
from dit.report.score_names import DISTANCES, KINDS, parse
from dit.report.text import arrow, number
from dit.utils.pictures import write_png

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333")
"""Distinct for colour-blind readers too (Okabe and Ito 2008); markers differ as well."""
MARKERS = "osD^vPX"
INK, SOFT = "#30353f", "#666d78"
LEGIBLE = 24  # characters of a label
DOTTED = (0, (2, 3))

Point = tuple[float, float, float | None, float | None]
"""x, y, and the ends of y's interval where known."""


def distance_by_size(limits: Mapping[str, Extrapolation]) -> Image.Image:
    """Draw each distance over 1/N (1911.07023), with the straight line to its limit.

    Distances without a limit are skipped; at least one must have it.
    """
    shown = {name: limit for name, limit in limits.items() if limit.limit is not None}
    assert shown, "no distance was extrapolated"

    axes = _panels(len(shown), 5.0, 3.2, "samples (spaced by 1/N)")
    for axis, (name, limit) in zip(axes, shown.items(), strict=True):
        _draw_limit(axis, name, limit)
    return to_image(axes[0].figure)


def score_names(log: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the scores in the lines of a run's log, in order of appearance."""
    names = dict.fromkeys(name for line in log for name in line)
    return [name for name in names if parse(name).kind in KINDS]


def training_scores(log: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the chart of the scores in a log as a PNG."""
    write_png(scores_chart(log), out)


def scores_chart(log: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw each score over the steps of training, its best marked.

    Args:
        log: lines with `step`, at least one of them with a score by name, such as FD(digits-cnn).
    """
    names = score_names(log)
    assert names, "no scores in the log"

    axes = _panels(len(names), 5.5, 3.0, "step")
    for axis, name in zip(axes, names, strict=True):
        scored = [line for line in log if line.get(name) is not None]
        points = [(line["step"], line[name]) for line in scored]
        _draw_score(axis, name, points)
    return to_image(axes[0].figure)


def accuracy_by_time(accuracies: Mapping[float, float], classes: int, title: str) -> Image.Image:
    """Draw the accuracy of a classifier of noised images over time, beside that of guessing."""
    figure = new_figure(6.4, 3.8)
    axis = new_axis(figure, "time: 0 is data, 1 is noise")
    points = [(time, 100 * share, None, None) for time, share in accuracies.items()]
    draw_line(axis, 0, "accuracy", points)
    style = {"color": SOFT, "linewidth": 1.0, "linestyle": DOTTED}
    axis.axhline(100 / classes, label="guessing", **style)

    set_title(axis, f"accuracy on noised training images, {title}")
    axis.set_ylabel("%", color=SOFT)
    axis.set_ylim(0, 103)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    return to_image(figure)


# -- one panel each --------------------------------------------------------------------------------


def draw_line(axis: Any, index: int, label: str, points: Iterable[Point]) -> None:
    """Draw a curve with its intervals as a band, in the colour and marker of its index.

    Points are sorted by x; NaN breaks the line.
    """
    ordered = sorted(points, key=lambda p: p[0])
    # a missing interval is None, which becomes NaN and draws no band
    table = np.array(ordered, dtype=float).reshape(-1, 4)
    x, y, low, high = table.T
    colour = COLOURS[index % len(COLOURS)]
    marker = MARKERS[index % len(MARKERS)]

    axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    style = {
        "color": colour,
        "marker": marker,
        "markersize": 5,
        "linewidth": 1.8,
    }
    axis.plot(x, y, label=_shorten(label), **style)


def _draw_limit(axis: Any, name: str, extrapolation: Extrapolation) -> None:
    value = extrapolation.limit
    assert value is not None
    x = 1 / np.array(extrapolation.sizes, dtype=float)
    y = np.array(extrapolation.distances, dtype=float)

    # 1911.07023: the distance is linear in 1/N; this line ends at the limit, where 1/N = 0
    slope = (x * (y - value)).sum() / (x * x).sum()
    ends = np.array([0, x.max()])
    axis.plot(ends, value + slope * ends, "--", color=COLOURS[0], linewidth=1.3)
    axis.plot(x, y, "o", color=COLOURS[0], markersize=5)

    diamond = {
        "fmt": "D",
        "color": COLOURS[1],
        "markersize": 6,
        "capsize": 4,
        "clip_on": False,
    }
    axis.errorbar(0, value, extrapolation.deviation, **diamond)
    style = {
        "textcoords": "offset points",
        "va": "top",
        "color": COLOURS[1],
        "fontweight": "bold",
    }
    axis.annotate(number(value), (0, value), (9, -3), **style)

    set_title(axis, _shorten(name, 40))
    axis.margins(y=0.18)
    axis.set_xlim(0, 1.08 * x.max())
    _size_ticks(axis, extrapolation.sizes)


def _draw_score(axis: Any, name: str, points: Sequence[tuple[float, float]]) -> None:
    steps, values = zip(*points, strict=True)
    axis.plot(steps, values, color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.6)

    if parse(name).kind in DISTANCES:
        direction, best = "lower", min
    else:
        direction, best = "higher", max
    set_title(axis, f"{_shorten(name, 40)} {arrow(direction)}")
    axis.margins(y=0.2)
    step, value = best(points, key=lambda point: point[1])
    mark(axis, (step, value), f"{number(value)} at {step:,}")


def mark(axis: Any, point: tuple[float, float], text: str) -> None:
    """Draw a ring around a point, with a text on the side that has space for it."""
    ring = {
        "markerfacecolor": "none",
        "markeredgecolor": INK,
        "markeredgewidth": 1.4,
    }
    axis.plot(*point, "o", markersize=13, zorder=5, **ring)

    # the limits of the axis must be final before data are turned into fractions of it
    axis.autoscale_view()
    pixels = axis.transData.transform(point)
    across, up = axis.transAxes.inverted().transform(pixels)
    right = across < 0.6
    above = up < 0.85
    shift = (11 if right else -11, 9 if above else -9)

    box = {
        "boxstyle": "round,pad=0.15",
        "facecolor": "white",
        "alpha": 0.8,
        "linewidth": 0,
    }
    style = {
        "textcoords": "offset points",
        "ha": "left" if right else "right",
        "va": "bottom" if above else "top",
        "color": INK,
        "fontsize": 9,
        "fontweight": "bold",
        "bbox": box,
    }
    axis.annotate(text, point, shift, zorder=6, **style)


# -- ticks, frames, pixels -------------------------------------------------------------------------


def _size_ticks(axis: Any, sizes: Sequence[int]) -> None:
    """Set ticks at each N and at the limit, without labels that would touch."""
    ticks = {0.0: "∞"}
    least = 0.13 / min(sizes)
    for size in sorted(sizes, reverse=True):
        if 1 / size - max(ticks) >= least:
            ticks[1 / size] = f"{size:,}"
    axis.set_xticks([*ticks], [*ticks.values()])


def plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Label a logarithmic axis at the given ascending values, where they are far enough apart."""
    ticks: list[float] = []
    width = math.log(values[-1] / values[0]) or 1.0
    for value in values:
        if not ticks or math.log(value / ticks[-1]) > 0.06 * width:
            ticks.append(value)
    axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axis.minorticks_off()


def set_title(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=10.5, color=INK, loc="left")


def _shorten(text: str, most: int = LEGIBLE) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _panels(count: int, least_width: float, height: float, xlabel: str) -> list[Any]:
    """Return the axes of a new figure, three in a row; width and height of a row in inches."""
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = new_figure(max(least_width, 3.4 * columns), height * rows)
    positions = [(rows, columns, i) for i in range(1, count + 1)]
    return [new_axis(figure, xlabel, position) for position in positions]


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def new_axis(figure: Any, xlabel: str, position: tuple[Any, ...] = (1, 1, 1)) -> Any:
    """Return a panel in the common style; `position` as in matplotlib's add_subplot."""
    axis = figure.add_subplot(*position)
    axis.set_xlabel(xlabel, color=SOFT)
    axis.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#b9bec7")
    axis.tick_params(colors=SOFT, labelsize=9)
    return axis


def to_image(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
