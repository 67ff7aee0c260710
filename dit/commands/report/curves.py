"""Curves of a run's log, beside a reference where there is one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dit.commands.report.reference import Line, Reference
from dit.report.figures import COLOURS, INK, SOFT, new_axis, new_figure, to_image
from dit.runs.metrics import BY_TIME
from dit.utils.pictures import smooth

EVENT, BAND = "#b3261e", "#8d95a3"
SIZE = 5.0, 3.1  # inches


@dataclass(frozen=True)
class Curve:
    """What a chart shows of the log.

    Args:
        name: of a number in its lines, or what names of several begin with.
        scale: what values are multiplied by.
        log: whether the axis is logarithmic.
        smoothed: whether a smoothed line lies over the values.
    """

    title: str
    name: str
    scale: float = 1.0
    log: bool = False
    smoothed: bool = False


CURVES = (
    Curve("loss", "loss", smoothed=True),
    Curve("loss by time: 0 is data, 1 is noise", BY_TIME),
    Curve("gradient norm before clipping", "grad_norm", log=True),
    Curve("norm of the update / norm of the weights", "update_ratio", log=True),
    Curve("learning rate", "lr"),
    Curve("images a second", "img_per_s"),
    Curve("MFU: % of peak FLOP/s", "mfu", scale=100),
    Curve("% of the time waiting for data", "data_wait", scale=100),
    Curve("peak memory, GiB", "memory_gib"),
)
"""Of the report, in their order."""


def draw_all(
    lines: Sequence[Line], events: Mapping[int, str], reference: Reference | None
) -> dict[str, Image.Image]:
    """Title -> chart, of those curves that the log has."""
    shown = [curve for curve in CURVES if values(lines, curve.name)]
    return {curve.title: draw(curve, lines, events, reference) for curve in shown}


def draw(
    curve: Curve, lines: Sequence[Line], events: Mapping[int, str], reference: Reference | None
) -> Image.Image:
    """One chart; events by step are marked."""
    figure = new_figure(*SIZE)
    axis = new_axis(figure, "step")
    if reference and curve.name != BY_TIME:
        draw_band(axis, curve.name, reference)
    draw_lines(axis, curve, lines)
    for step in events:
        axis.axvline(step, color=EVENT, linewidth=1.0, alpha=0.7, zorder=0)
    finish(axis, curve)
    return to_image(figure)


def finish(axis: Any, curve: Curve) -> None:
    """Scale, ticks and legend."""
    axis.xaxis.get_major_locator().set_params(integer=True)
    if curve.log:
        axis.set_yscale("log")
        axis.tick_params(which="minor", colors=SOFT, labelsize=9)
    else:
        axis.set_ylim(bottom=0)
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend(
            frameon=False, fontsize=8.5, labelcolor=INK, ncols=2 if curve.name == BY_TIME else 1
        )


def draw_lines(axis: Any, curve: Curve, lines: Sequence[Line]) -> None:
    """The numbers of a curve over the steps, each by its name."""
    for place, (name, points) in enumerate(values(lines, curve.name).items()):
        steps, found = np.array(points).T
        label = name.removeprefix(BY_TIME) if curve.name == BY_TIME else "this run"
        colour = COLOURS[place % len(COLOURS)]
        pale = (
            {"alpha": 0.35, "linewidth": 1.0}
            if curve.smoothed
            else {"label": label, "linewidth": 1.6}
        )
        axis.plot(
            steps, curve.scale * found, color=colour, marker="." if len(steps) == 1 else "", **pale
        )
        if curve.smoothed:
            axis.plot(steps, smooth(curve.scale * found), color=colour, linewidth=1.8, label=label)


def draw_band(axis: Any, name: str, reference: Reference) -> None:
    """Between the lowest and the highest of the reference's runs, at steps that all of them logged."""
    runs = [
        {line["step"]: line[name] for line in run if name in line}
        for run in reference.runs.values()
    ]
    steps = sorted(set.intersection(*map(set, runs)))
    if not steps:
        return
    found = np.array([[run[step] for step in steps] for run in runs])
    axis.fill_between(steps, found.min(0), found.max(0), color=BAND, alpha=0.35, linewidth=0)
    axis.plot(
        steps, found.mean(0), color=SOFT, linewidth=1.0, linestyle=(0, (4, 2)), label=reference.name
    )


def values(lines: Sequence[Line], name: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of the number with this name, or of all that begin with it where it ends in a slash."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key == name or (name.endswith("/") and key.startswith(name)):
                found.setdefault(key, []).append((line["step"], value))
    return dict(sorted(found.items()))


def draw_reference(reference: Reference) -> Image.Image:
    """Loss, gradient norm and loss by time of a preset: every seed, and the mean over seeds by time."""
    figure = new_figure(12.0, 3.4)
    by_name = {curve.name: curve for curve in CURVES}
    for place, name in enumerate(("loss", "grad_norm", BY_TIME), start=1):
        curve, axis = by_name[name], new_axis(figure, "step", (1, 3, place))
        if name == BY_TIME:
            draw_lines(axis, curve, _mean(list(reference.runs.values())))
        for seed, (run, lines) in enumerate(() if name == BY_TIME else reference.runs.items()):
            steps, found = np.array(values(lines, name)[name]).T
            axis.plot(
                steps, found, color=COLOURS[seed % len(COLOURS)], linewidth=1.5, label=f"seed {run}"
            )
        finish(axis, curve)
        axis.set_title(curve.title, fontsize=10.5, color=INK, loc="left")
    return to_image(figure)


def _mean(runs: Sequence[Sequence[Line]]) -> list[dict[str, float]]:
    """Lines of the steps that all runs logged, with the mean of each number that all have there."""
    by_step = [{line["step"]: line for line in run} for run in runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    together = [[run[step] for run in by_step] for step in steps]
    return [
        {
            name: sum(line[name] for line in lines) / len(lines)
            for name in lines[0]
            if all(name in line for line in lines)
        }
        for lines in together
    ]
