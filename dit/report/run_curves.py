"""Curves of a run's log, beside the reference curves of its preset where there are any."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dit.report.figures import (
    COLOURS,
    INK,
    SOFT,
    new_axis,
    new_figure,
    score_names,
    scores_chart,
    set_title,
    to_image,
)
from dit.report.reference_curves import Line, Reference
from dit.runs.logs import BY_TIME, read_metrics
from dit.utils.pictures import smooth

EVENT, BAND = "#b3261e", "#8d95a3"
SIZE = 5.0, 3.1  # inches


@dataclass(frozen=True)
class Curve:
    """A chart of numbers in the log.

    Args:
        name: of a number in its lines, or a prefix of several that ends in a slash.
        scale: what values are multiplied by.
        log: whether the axis is logarithmic.
        smoothed: whether a smoothed line lies over the values.
    """

    title: str
    name: str
    scale: float = 1.0
    log: bool = False
    smoothed: bool = False


LOSS = Curve("loss", "loss", smoothed=True)
CURVES = (
    LOSS,
    Curve("loss by time: 0 is data, 1 is noise", BY_TIME),
    Curve("gradient norm before clipping", "grad_norm", log=True),
    Curve("norm of the update / norm of the weights", "update_ratio", log=True),
    Curve("learning rate", "lr"),
    Curve("images a second", "img_per_s"),
    Curve("MFU: % of peak FLOP/s", "mfu", scale=100),
    Curve("% of the time waiting for data", "data_wait", scale=100),
    Curve("peak memory, GiB", "memory_gib"),
)


def draw_all(
    lines: Sequence[Line], events: Sequence[int], reference: Reference | None
) -> dict[str, Image.Image]:
    """Return title -> chart of the curves that the log has, with the steps of events marked."""
    shown = [curve for curve in CURVES if values(lines, curve.name)]
    return {curve.title: draw(curve, lines, events, reference) for curve in shown}


def draw(
    curve: Curve,
    lines: Sequence[Line],
    events: Sequence[int] = (),
    reference: Reference | None = None,
) -> Image.Image:
    figure = new_figure(*SIZE)
    axis = new_axis(figure, "step")
    if reference and curve.name != BY_TIME:
        _draw_band(axis, curve.name, reference)
    _draw_values(axis, curve, lines)
    # below the curves
    for step in events:
        axis.axvline(step, color=EVENT, linewidth=1.0, alpha=0.7, zorder=0)
    _finish(axis, curve)
    return to_image(figure)


def _finish(axis: Any, curve: Curve) -> None:
    # steps are whole numbers, also in a run of five
    axis.xaxis.get_major_locator().set_params(integer=True)
    if curve.log:
        axis.set_yscale("log")
        axis.tick_params(which="minor", colors=SOFT, labelsize=9)
    else:
        axis.set_ylim(bottom=0)

    if len(axis.get_legend_handles_labels()[0]) > 1:
        columns = 2 if curve.name == BY_TIME else 1
        axis.legend(frameon=False, fontsize=8.5, labelcolor=INK, ncols=columns)


def _draw_values(axis: Any, curve: Curve, lines: Sequence[Line]) -> None:
    found = values(lines, curve.name)
    for i, (name, points) in enumerate(found.items()):
        steps, numbers = np.array(points).T
        numbers = curve.scale * numbers
        label = name.removeprefix(BY_TIME) if curve.name == BY_TIME else "this run"
        colour = COLOURS[i % len(COLOURS)]
        # a line of one point would not be seen
        marker = "." if len(steps) == 1 else ""

        style = {"color": colour, "marker": marker}
        if curve.smoothed:
            axis.plot(steps, numbers, alpha=0.35, linewidth=1.0, **style)
            axis.plot(steps, smooth(numbers), linewidth=1.8, label=label, color=colour)
        else:
            axis.plot(steps, numbers, linewidth=1.6, label=label, **style)


def _draw_band(axis: Any, name: str, reference: Reference) -> None:
    """Draw the range and the mean of the reference's runs, at steps that all of them logged."""
    runs = []
    for lines in reference.runs.values():
        points = values(lines, name).get(name, [])
        runs.append(dict(points))
    steps = sorted(set.intersection(*map(set, runs)))
    if not steps:
        return

    numbers = np.array([[run[step] for step in steps] for run in runs])
    low = numbers.min(0)
    high = numbers.max(0)
    axis.fill_between(steps, low, high, color=BAND, alpha=0.35, linewidth=0)
    style = {"color": SOFT, "linewidth": 1.0, "linestyle": (0, (4, 2))}
    axis.plot(steps, numbers.mean(0), label=reference.name, **style)


def training_figures(run: Path) -> dict[str, Image.Image]:
    """Draw loss and scores from the log of a run; `run` may also be a path within its directory."""
    # a checkpoint or a file of weights lies up to three folders below its run
    folders = (run, *run.resolve().parents[:3])
    logs = (read_metrics(folder / "metrics.jsonl") for folder in folders)
    lines = next(filter(None, logs), [])
    drawn = {"Loss": draw(LOSS, lines)} if values(lines, LOSS.name) else {}
    if scores := draw_scores(lines):
        drawn["Scores of the EMA"] = scores
    return drawn


def draw_scores(lines: Sequence[Line]) -> Image.Image | None:
    """Draw the scores in a log that were measured as the last ones were."""
    measured = [line for line in lines if "eval" in line]
    alike = [line for line in measured if line["eval"] == measured[-1]["eval"]]
    return scores_chart(alike) if score_names(alike) else None


def values(lines: Sequence[Line], name: str) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of the numbers with a name, or with a prefix that ends in a slash."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key == name or (name.endswith("/") and key.startswith(name)):
                found.setdefault(key, []).append((line["step"], value))
    return dict(sorted(found.items()))


def draw_reference(reference: Reference) -> Image.Image:
    """Draw loss and gradient norm of every seed of a preset, and the mean loss by time."""
    figure = new_figure(12.0, 3.4)
    by_name = {curve.name: curve for curve in CURVES}
    for position, name in enumerate(("loss", "grad_norm", BY_TIME), start=1):
        curve = by_name[name]
        axis = new_axis(figure, "step", (1, 3, position))
        if name == BY_TIME:
            mean = _mean([*reference.runs.values()])
            _draw_values(axis, curve, mean)
        else:
            for i, (seed, lines) in enumerate(reference.runs.items()):
                points = values(lines, name)[name]
                steps, numbers = np.array(points).T
                colour = COLOURS[i % len(COLOURS)]
                axis.plot(steps, numbers, color=colour, linewidth=1.5, label=f"seed {seed}")
        _finish(axis, curve)
        set_title(axis, curve.title)
    return to_image(figure)


def _mean(runs: Sequence[Sequence[Line]]) -> list[dict[str, float]]:
    """Return the mean over runs of the numbers that all have, at steps that all logged."""
    by_step = [{line["step"]: line for line in run} for run in runs]
    means = []
    for step in sorted(set.intersection(*map(set, by_step))):
        lines = [run[step] for run in by_step]
        names = [name for name in lines[0] if all(name in line for line in lines)]
        totals = {name: sum(line[name] for line in lines) for name in names}
        means.append({name: total / len(lines) for name, total in totals.items()})
    return means
