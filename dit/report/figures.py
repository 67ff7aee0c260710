"""Curves: a distance by number of samples, scores by sampling settings, scores during training."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dit.report.evaluation_page import DISTANCES, KINDS, Extrapolated, arrow, number, parse

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333")
"""Told apart by colour-blind eyes too (Okabe and Ito 2008); markers differ as well."""
MARKERS = "osD^vPX"
INK, SOFT = "#30353f", "#666d78"
LEGIBLE = 24  # characters of a label

Point = tuple[float, float, float | None, float | None]
"""x, y, and the ends of y's interval where known."""


def distance_by_size(found: Sequence[Extrapolated]) -> Image.Image:
    """Each distance over 1/N (1911.07023), with the straight line to its limit at endlessly many samples.

    Those without a limit are left out; there must be one that has it.
    """
    shown = [one for one in found if one.limit is not None]
    assert shown, "no distance was extrapolated"
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(max(5.0, 3.4 * columns), 3.2 * rows)
    for place, one in enumerate(shown):
        _extrapolation(new_axis(figure, "samples (spaced by 1/N)", (rows, columns, place + 1)), one)
    return to_image(figure)


def score_names(log: Iterable[Mapping[str, Any]]) -> list[str]:
    """Scores in the lines of a run's log, in order of appearance."""
    return [*dict.fromkeys(key for line in log for key in line if parse(key).kind in KINDS)]


def training_scores(log: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the chart of the scores in a log as a PNG."""
    scores_chart(log).save(out)


def scores_chart(log: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Each score over the steps of training, its best marked.

    Args:
        log: lines of a run's log with `step`, some of them with scores by name, such as FD(digits-cnn); at least one.
    """
    names = score_names(log)
    assert names, "no scores in the log"
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = new_figure(max(5.5, 3.4 * columns), 3.0 * rows)
    for place, name in enumerate(names):
        points = [(line["step"], line[name]) for line in log if line.get(name) is not None]
        _training(new_axis(figure, "step", (rows, columns, place + 1)), name, points)
    return to_image(figure)


def accuracy_by_time(found: Mapping[float, float], classes: int, title: str) -> Image.Image:
    """How often a classifier names the class, over time: 0 is data, 1 is noise; beside what guessing would give."""
    figure = new_figure(6.4, 3.8)
    axis = new_axis(figure, "time: 0 is data, 1 is noise")
    draw_line(
        axis, 0, "accuracy", [(time, 100 * share, None, None) for time, share in found.items()]
    )
    axis.axhline(100 / classes, color=SOFT, linewidth=1.0, linestyle=(0, (2, 3)), label="guessing")
    axis.set_title(
        f"classes told of noised training images, {title}", fontsize=10.5, color=INK, loc="left"
    )
    axis.set_ylabel("%", color=SOFT)
    axis.set_ylim(0, 103)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    return to_image(figure)


# -- one panel each ------------------------------------------------------------------------------------------------


def draw_line(axis: Any, place: int, label: str, points: Iterable[Point]) -> None:
    """A curve with its intervals as a band, in the look of its place; points in any order, NaN breaks the line."""
    x, y, low, high = np.array(sorted(points, key=lambda p: p[0]), dtype=float).reshape(-1, 4).T
    colour = COLOURS[place % len(COLOURS)]
    axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axis.plot(
        x,
        y,
        color=colour,
        marker=MARKERS[place % len(MARKERS)],
        markersize=5,
        linewidth=1.8,
        label=_shorten(label),
    )


def _extrapolation(axis: Any, one: Extrapolated) -> None:
    assert one.limit is not None
    x, y = 1 / np.array(one.sizes, dtype=float), np.array(one.distances, dtype=float)
    slope = (x * (y - one.limit)).sum() / (x * x).sum()
    ends = np.array([0, x.max()])
    axis.plot(ends, one.limit + slope * ends, "--", color=COLOURS[0], linewidth=1.3)
    axis.plot(x, y, "o", color=COLOURS[0], markersize=5)
    axis.errorbar(
        0,
        one.limit,
        one.deviation,
        fmt="D",
        color=COLOURS[1],
        markersize=6,
        capsize=4,
        clip_on=False,
    )
    axis.annotate(
        number(one.limit),
        (0, one.limit),
        (9, -3),
        textcoords="offset points",
        va="top",
        color=COLOURS[1],
        fontweight="bold",
    )
    axis.set_title(_shorten(one.name, 40), fontsize=10.5, color=INK, loc="left")
    axis.margins(y=0.18)
    axis.set_xlim(0, 1.08 * x.max())
    _size_ticks(axis, one.sizes)


def _training(axis: Any, name: str, points: Sequence[tuple[float, float]]) -> None:
    lower = parse(name).kind in DISTANCES
    axis.plot(
        *zip(*points, strict=True), color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.6
    )
    title = f"{_shorten(name, 40)} {arrow('lower' if lower else 'higher')}"
    axis.set_title(title, fontsize=10.5, color=INK, loc="left")
    axis.margins(y=0.2)
    step, value = (min if lower else max)(points, key=lambda p: p[1])
    mark(axis, (step, value), f"{number(value)} at {step:,}")


def mark(axis: Any, point: tuple[float, float], text: str) -> None:
    """A ring around a point, its text to the side where there is room."""
    axis.plot(
        *point,
        "o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=1.4,
        zorder=5,
    )
    axis.autoscale_view()
    across, up = axis.transAxes.inverted().transform(axis.transData.transform(point))
    shift, align = (11, "left") if across < 0.6 else (-11, "right")
    axis.annotate(
        text,
        point,
        (shift, 9 if up < 0.85 else -9),
        textcoords="offset points",
        ha=align,
        color=INK,
        va="bottom" if up < 0.85 else "top",
        fontsize=9,
        fontweight="bold",
        zorder=6,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )


# -- ticks, frames, pixels -----------------------------------------------------------------------------------------


def _size_ticks(axis: Any, sizes: Sequence[int]) -> None:
    """At N itself, leaving out labels that would touch, and at the limit."""
    places, labels = [0.0], ["∞"]
    for size in sorted(sizes, reverse=True):
        if 1 / size - places[-1] >= 0.13 / min(sizes):
            places, labels = [*places, 1 / size], [*labels, f"{size:,}"]
    axis.set_xticks(places, labels)


def plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """On a logarithmic axis, labels at values that are there and far enough apart."""
    places: list[float] = []
    width = math.log(values[-1] / values[0]) or 1.0
    for value in values:
        if not places or math.log(value / places[-1]) > 0.06 * width:
            places.append(value)
    axis.set_xticks(places, [f"{value:g}" for value in places])
    axis.minorticks_off()


def _shorten(text: str, most: int = LEGIBLE) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def new_axis(figure: Any, xlabel: str, place: tuple[Any, ...] = (1, 1, 1)) -> Any:
    """A panel in the house's look; `place` as matplotlib takes it."""
    axis = figure.add_subplot(*place)
    axis.set_xlabel(xlabel, color=SOFT)
    axis.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#b9bec7")
    axis.tick_params(colors=SOFT, labelsize=9)
    return axis


def to_image(figure: Any) -> Image.Image:
    """Its pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
