"""Pictures of a sweep: scores against guidance, quality against cost, the same images at several settings."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dit.commands.sweep.points import Point, Setting, classifier_scale, picture_file
from dit.commands.sweep.ranking import Ranking
from dit.evaluation.metrics.bootstrap import interval
from dit.evaluation.metrics.compute import Range
from dit.report import figures
from dit.report.evaluation_page import arrow, number, parse
from dit.utils.pictures import GAP, PAPER

FLOOR, FAINT = "#8fcdb4", "#d5d9e0"
WIDE = 12  # largest distance over smallest, from which the axis is logarithmic
PANELS = ("precision", "density", "recall", "coverage")  # fidelity above, diversity below
COLOURED, BANDED = (
    7,
    2,
)  # lines in colour, the best first; with more lines than the second only the best has a band
NAMED, ROWS = 6, 16  # points of the frontier by name, rows of the strip

Number = Callable[[Point], float]

AXES: dict[str, Callable[[Setting], Any]] = {
    "ema-length": lambda setting: setting.ema_length,
    "cfg-scale": lambda setting: setting.cfg_scale,
    "classifier-scale": classifier_scale,
    "steps": lambda setting: setting.steps,
    "interval": lambda setting: setting.cfg_interval,
    "sampler": lambda setting: setting.sampler,
}
"""What a sweep varies."""
WORDS: dict[str, Callable[[Setting], str]] = {
    "ema-length": lambda setting: f"ema-length {setting.ema_length:g}",
    "cfg-scale": lambda setting: f"cfg-scale {setting.cfg_scale:g}",
    "classifier-scale": lambda setting: f"classifier-scale {classifier_scale(setting):g}",
    "steps": lambda setting: f"{setting.steps} steps",
    "interval": lambda setting: "times {:g}-{:g}".format(*setting.cfg_interval),
    "sampler": lambda setting: setting.sampler,
}


LABELS = (
    "sampler",
    "steps",
    "interval",
    "cfg-scale",
    "classifier-scale",
    "ema-length",
)  # of a line, in this order


def varied(points: Sequence[Point]) -> list[str]:
    """Axes on which points differ."""
    return [axis for axis, of in AXES.items() if len({of(point.setting) for point in points}) > 1]


def against_guidance(
    points: Sequence[Point], ranking: Ranking, floor: Mapping[str, Range], scale: str = "cfg-scale"
) -> Image.Image | None:
    """Distance and, beside it, shares of the manifolds over one scale; None where it does not vary.

    Args:
        scale: cfg-scale, classifier-scale or ema-length.
    """
    if scale not in varied(points) or not ranking.order:
        return None
    best = points[ranking.best]
    lines = _lines(
        points, [axis for axis in LABELS if axis != scale], share_unguided=scale == "cfg-scale"
    )
    network = parse(best.first.name).network
    beside = [
        name for panel in PANELS for name in best.scores if parse(name)[:2] == (panel, network)
    ]
    canvas = figures.new_figure(11.0 if beside else 7.2, 4.7)
    cells = canvas.add_gridspec(2, 4 if beside else 2)
    axis = _panel(canvas, cells[:, :2], scale, best.first.name, "lower")
    _draw_distances(axis, lines, floor, lambda point: AXES[scale](point.setting))
    figures.mark(axis, (AXES[scale](best.setting), best.distance), f"best: {number(best.distance)}")
    for place, name in enumerate(beside):
        small = _panel(canvas, cells[place // 2, 2 + place % 2], scale, parse(name).kind, "higher")
        _draw_shares(small, lines, name, floor, best, AXES[scale])
    _legend(canvas, axis)
    return figures.to_image(canvas)


def against_evaluations(
    points: Sequence[Point], ranking: Ranking, floor: Mapping[str, Range]
) -> Image.Image | None:
    """Distance over network calls an image, with the frontier; None where only guidance tells costs apart."""
    costs = {point.evaluations for point in points}
    if (
        len(costs) < 2
        or not {*varied(points)} - {"cfg-scale", "classifier-scale", "ema-length"}
        or not ranking.order
    ):
        return None
    best = points[ranking.best]
    canvas = figures.new_figure(11.0, 4.7)
    axis = _panel(
        canvas,
        canvas.add_gridspec(1, 1)[0],
        "network calls an image (log)",
        best.first.name,
        "lower",
    )
    axis.set_xscale("log")
    lines = _lines(points, [axis for axis in LABELS if axis != "steps"], share_unguided=False)
    _draw_distances(axis, lines, floor, lambda point: point.evaluations)
    figures.plain_ticks(axis, sorted(costs))
    _draw_frontier(axis, frontier([points[i] for i in ranking.order]), varied(points))
    _legend(canvas, axis)
    return figures.to_image(canvas)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points than which no cheaper or equally cheap one is better, cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.evaluations, p.distance)):
        if not found or point.distance < found[-1].distance:
            found.append(point)
    return found


def strip(points: Sequence[Point], ranking: Ranking, out: Path) -> tuple[str, Image.Image] | None:
    """The same images along one axis, as (axis, picture); all else is as in the best point.

    Of the axes on which points differ the first, in the order of `AXES`. None where nothing differs.
    """
    axes = varied(points)
    if not axes or not ranking.order:
        return None
    best = points[ranking.best]
    guided = [
        points[i]
        for i in ranking.order
        if points[i].setting.cfg_scale != 1 and _same_sampling(points[i], best)
    ]
    interval = (guided[0] if guided and best.setting.cfg_scale == 1 else best).setting.cfg_interval
    alike = (p for p in points if _alike(p, best, interval, but=axes[0]))
    along = sorted(alike, key=lambda p: AXES[axes[0]](p.setting))
    step = -(-len(along) // ROWS)
    shown = [point for i, point in enumerate(along) if i % step == along.index(best) % step]
    rows = []
    for point in shown:
        with Image.open(picture_file(out, point.key)) as picture:
            rows.append(picture.convert("RGB"))
    return axes[0], _stack(rows, [WORDS[axes[0]](p.setting) for p in shown], shown, best)


def _alike(point: Point, best: Point, interval: tuple[float, float], but: str) -> bool:
    """Whether a point is the best one but for one axis, and guided in `interval` if it is guided."""
    same = all(
        of(point.setting) == of(best.setting)
        for axis, of in AXES.items()
        if axis not in (but, "interval")
    )
    return same and (
        but == "interval" or point.setting.cfg_scale == 1 or point.setting.cfg_interval == interval
    )


def _stack(
    rows: Sequence[Image.Image], labels: Sequence[str], points: Sequence[Point], best: Point
) -> Image.Image:
    """Pictures one below the other, each with its label and its distance; the best one has a bar beside it."""
    large, small = (ImageFont.load_default(size=size) for size in (17, 14))
    left = 4 * GAP + int(max(large.getlength(label) for label in labels)) + 2 * GAP
    width, height = left + max(row.width for row in rows), max(row.height for row in rows)
    sheet = Image.new("RGB", (width, height * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (row, label, point) in enumerate(zip(rows, labels, points, strict=True)):
        top, middle = i * height, i * height + height // 2
        sheet.paste(row, (left, top))
        colour = figures.COLOURS[0] if point is best else figures.INK
        if point is best:
            draw.rectangle((0, top + GAP, GAP, top + height - GAP), fill=colour)
        draw.text((3 * GAP, middle - 2), label, colour, large, anchor="ls")
        value = "not available" if point.first.value is None else number(point.first.value)
        text = f"{value}  best" if point is best else value
        draw.text((3 * GAP, middle + 5), text, figures.SOFT, small, anchor="lt")
    return sheet


# -- lines ---------------------------------------------------------------------------------------------------------


def _lines(
    points: Sequence[Point], axes: Sequence[str], share_unguided: bool
) -> dict[str, list[Point]]:
    """Points in groups that agree on some axes, by the words for those that vary, the line with the best point first.

    Args:
        share_unguided: points without guidance belong to the line of every interval.
    """
    named = [axis for axis in axes if axis in varied(points)]
    lines: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        if not (share_unguided and point.setting.cfg_scale == 1):
            lines.setdefault(tuple(AXES[axis](point.setting) for axis in named), []).append(point)
    for line in lines.values():
        if share_unguided:
            line += [p for p in points if p.setting.cfg_scale == 1 and _same_sampling(p, line[0])]
    ordered = sorted(lines.values(), key=lambda line: min(point.distance for point in line))
    return {", ".join(WORDS[axis](line[0].setting) for axis in named): line for line in ordered}


def _same_sampling(one: Point, other: Point) -> bool:
    axes = ("sampler", "steps", "classifier-scale", "ema-length")
    return all(AXES[axis](one.setting) == AXES[axis](other.setting) for axis in axes)


def _draw_distances(
    axis: Any, lines: Mapping[str, Sequence[Point]], floor: Mapping[str, Range], x: Number
) -> None:
    """Lines, the best in colour and with their intervals while they stay legible, over the band of real images."""
    points = [point for line in lines.values() for point in line if point.first.value is not None]
    values = [point.distance for point in points]
    if max(values) > WIDE * min(values) > 0:
        axis.set_yscale("log")
    _band(axis, floor.get(points[0].first.name))
    for place, (label, line) in enumerate(lines.items()):
        banded = place == 0 or len(lines) <= BANDED
        marks = [
            (x(p), p.distance, *(_ends(p) if banded else (None, None)))
            for p in line
            if p.first.value is not None
        ]
        if place < COLOURED and marks:
            figures.draw_line(axis, place, label, marks)
        elif marks:
            others = f"{len(lines) - COLOURED} others" if place == COLOURED else None
            axis.plot(
                *zip(*[mark[:2] for mark in sorted(marks)], strict=True),
                color=FAINT,
                marker=".",
                zorder=1,
                label=others,
            )


def _draw_shares(
    axis: Any,
    lines: Mapping[str, Sequence[Point]],
    name: str,
    floor: Mapping[str, Range],
    best: Point,
    scale: Callable[[Setting], float],
) -> None:
    """One of precision, recall, density and coverage."""
    _band(axis, floor.get(name))
    for place, (label, line) in enumerate(lines.items()):
        marks: list[figures.Point] = [
            (scale(p.setting), value, None, None)
            for p in line
            if (value := p.value(name)) is not None
        ]
        if place < COLOURED and marks:
            figures.draw_line(axis, place, label, marks)
    axis.axvline(
        scale(best.setting), color=figures.INK, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1
    )


def _ends(point: Point) -> tuple[float | None, float | None]:
    return interval(point.distance, point.replicates) if point.replicates else (None, None)


def _band(axis: Any, floor: Range | None) -> None:
    if floor:
        axis.axhspan(
            floor.low,
            floor.high,
            color=FLOOR,
            alpha=0.45,
            linewidth=0,
            label="real against real",
            zorder=0,
        )


def _draw_frontier(axis: Any, points: Sequence[Point], axes: Sequence[str]) -> None:
    """The least distance for the calls spent, as steps, some of its corners named."""
    x, y = [point.evaluations for point in points], [point.distance for point in points]
    axis.step(
        x,
        y,
        where="post",
        color=figures.INK,
        linewidth=1.1,
        linestyle=(0, (4, 3)),
        label="frontier",
        zorder=4,
    )
    axis.plot(
        x, y, "o", markersize=12, markerfacecolor="none", markeredgecolor=figures.INK, zorder=5
    )
    every = -(-len(points) // NAMED)
    for point in points[::-1][::every]:
        text = "\n".join(WORDS[name](point.setting) for name in axes)
        axis.annotate(
            text,
            (point.evaluations, point.distance),
            (0, -11),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color=figures.INK,
            linespacing=1.15,
            zorder=6,
        )
    axis.margins(x=0.08, y=0.22)
    axis.set_ylim(bottom=max(0.0, axis.get_ylim()[0]))


# -- panels --------------------------------------------------------------------------------------------------------


def _panel(canvas: Any, cell: Any, xlabel: str, name: str, better: str) -> Any:
    axis = figures.new_axis(canvas, xlabel, (cell,))
    axis.set_title(f"{name} {arrow(better)}", fontsize=10.5, color=figures.INK, loc="left")
    return axis


def _legend(canvas: Any, axis: Any) -> None:
    """Below all panels, where there is more than one thing to tell apart."""
    handles, labels = axis.get_legend_handles_labels()
    shown = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label]
    if shown:
        canvas.legend(
            *zip(*shown, strict=True),
            loc="outside lower center",
            frameon=False,
            fontsize=9,
            ncols=min(5, len(shown)),
            labelcolor=figures.INK,
        )
