"""The report of an evaluation: report.json for machines, report.md and report.html for people."""

import base64
import dataclasses
import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.metrics.compute import Range, Score
from dit.evaluation.metrics.per_class import ClassRow, Recognition
from dit.evaluation.protocol import UNKNOWN
from dit.utils.files import write_atomically, write_json

FORMAT = 2  # of report.json; those of version 1 did not say so
LONG = 20  # entries of a list, and classes of a table, that are shown one by one
DISTANCES = ("FID", "FD", "sFID", "sFD", "KID")
SHARES = ("precision", "recall", "density", "coverage")
KINDS = (*DISTANCES, *SHARES, "IS")
"""Of scores, and those of them of which less is better, and those that are shares of a manifold."""
SECTIONS = SAMPLES, CLASSES, UNCERTAINTY, MEMORISATION, TRAINING = (
    *("Samples", "Classes", "Uncertainty", "Memorisation", "Training"),
)
"""Of the page, in their order; figures of other sections follow."""


@dataclass(frozen=True)
class Digits:
    """How many of the samples an SVM recognises, and how many real digits; or why it is not known."""

    found: Recognition | None = None
    floor: Recognition | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Extrapolated:
    """A distance at several numbers of samples, its limit and the limit's deviation; or why there is none."""

    name: str
    sizes: Sequence[int] = ()
    distances: Sequence[float] = ()
    limit: float | None = None
    deviation: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Memorisation:
    """How many of the `checked` samples are as good as copies of one of `count` images of `against`.

    Args:
        share: of the samples; `real_share`: of real images, how many are as near to another one.
        by: what nearness was measured in: pixels, or the features of a network.
    """

    share: float
    real_share: float
    checked: int
    against: str
    count: int
    by: str


@dataclass(frozen=True)
class Report:
    """All that an evaluation found.

    Args:
        scores: by name; `floor` and `intervals` (95%, from low to high) by the same names, where known.
        protocol: section -> entry -> value, plain JSON values.
        digits: only where the reference is the digits.
        figures: section -> caption -> picture.
        notes: what to know before reading any number.
    """

    title: str
    scores: dict[str, Score]
    floor: dict[str, Range]
    protocol: dict[str, dict[str, Any]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    digits: Digits | None = None
    classes: Sequence[ClassRow] = ()
    uncertainty: Sequence[Extrapolated] = ()
    memorisation: Sequence[Memorisation] = ()
    figures: dict[str, dict[str, Image.Image]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(report: Report, out: Path) -> list[Path]:
    """Write the three files into `out`; returns their paths."""
    paths = [out / f"report.{suffix}" for suffix in ("json", "md", "html")]
    write_json(paths[0], to_json(report))
    for path, text in zip(paths[1:], (to_markdown(report), to_html(report)), strict=True):
        with write_atomically(path) as beside:
            beside.write_text(text, encoding="utf-8")
    return paths


def to_json(report: Report) -> dict[str, Any]:
    """All but the pictures as plain JSON values: a score that is missing is null and has a reason."""
    return {
        "format": FORMAT,
        "title": report.title,
        "scores": {name: _score_json(report, name) for name in report.scores},
        "digits_recognised": report.digits and dataclasses.asdict(report.digits),
        "classes": [dataclasses.asdict(row) for row in report.classes],
        "uncertainty": [dataclasses.asdict(found) for found in report.uncertainty],
        "memorisation": [dataclasses.asdict(found) for found in report.memorisation],
        "protocol": report.protocol,
        "notes": list(report.notes),
    }


def _score_json(report: Report, name: str) -> dict[str, Any]:
    floor, interval = report.floor.get(name), report.intervals.get(name)
    return {
        **{key: value for key, value in report.scores[name].to_json().items() if key != "name"},
        "interval": interval and list(interval),
        "floor": floor and dataclasses.asdict(floor),
    }


# -- the headline table ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A score drawn on a line: its value, interval and floor in percent from the left, and the ends as text."""

    value: float
    interval: tuple[float, float] | None
    floor: tuple[float, float] | None
    ends: tuple[str, str]


@dataclass(frozen=True)
class Row:
    """One line of the headline table, as text; without a value there is a reason, and no axis."""

    name: str
    network: str
    better: str
    value: str | None
    spread: str
    floor: str
    floor_of: str
    count: str
    remark: str
    axis: Axis | None = None


def rows(report: Report) -> list[Row]:
    """The headline table, network by network."""
    found = [_digits_row(report.digits)] if report.digits else []
    found += [_score_row(report, name) for name in report.scores]
    order = {
        network: place for place, network in reversed([*enumerate(row.network for row in found)])
    }
    return sorted(found, key=lambda row: order[row.network])


def groups(report: Report) -> list[tuple[str, list[Row]]]:
    """The headline table in parts, one for each feature network."""
    return [
        (network, [*found])
        for network, found in itertools.groupby(rows(report), key=lambda row: row.network)
    ]


class ScoreName(NamedTuple):
    """What a score's name says: FD, of which feature network, and in whose manner where there are several."""

    kind: str
    network: str
    convention: str


def parse(score: str) -> ScoreName:
    """A score's name in parts; Inception's scores have the plain names. What is no score's name is all kind."""
    found = re.fullmatch(r"([^\s(]+)(?:\((.+?)\))?(?: \((.+)\))?", score)
    return (
        ScoreName(found[1], found[2] or INCEPTION, found[3] or "")
        if found
        else ScoreName(score, INCEPTION, "")
    )


def _score_row(report: Report, name: str) -> Row:
    score, floor, interval = report.scores[name], report.floor.get(name), report.intervals.get(name)
    ends = (floor.low, floor.high) if floor else None
    return Row(
        name=score.name,
        network=parse(score.name).network,
        better=score.direction,
        value=None if score.value is None else number(score.value),
        spread=_spread(interval, score.deviation),
        floor="–" if floor is None else span(floor.low, floor.high),
        floor_of=floor_of(floor) if floor else "",
        count=_count(score.samples, score.reference),
        remark=score.reason or score.note or "",
        axis=None if score.value is None else _axis(score.value, interval, ends, score.direction),
    )


def _digits_row(digits: Digits) -> Row:
    found, floor = digits.found, digits.floor
    ends = (floor.accuracy, floor.accuracy) if floor else None
    return Row(
        name="digits recognised",
        network="",
        better="higher",
        value=f"{found.accuracy:.2%}" if found else None,
        spread="",
        floor=f"{floor.accuracy:.2%}" if floor else "–",
        floor_of=f"N = {floor.count:,}" if floor else "",
        count=_count(found.count, None) if found else "–",
        remark=digits.reason or "by an SVM trained on the real ones, at 8x8",
        axis=_axis(found.accuracy, None, ends, "higher") if found else None,
    )


def _spread(interval: tuple[float, float] | None, deviation: float | None) -> str:
    if interval:
        return span(*interval)
    return "" if deviation is None else f"± {deviation:,.{_decimals(deviation)}f}"


def floor_of(floor: Range) -> str:
    """How many real images make a floor, and how often."""
    return f"N = {floor.samples:,}, {floor.splits} split" + "s" * (floor.splits != 1)


def _count(samples: int, reference: int | None) -> str:
    return f"{samples:,}" if reference is None else f"{samples:,} / {reference:,}"


def _axis(
    value: float,
    interval: tuple[float, float] | None,
    floor: tuple[float, float] | None,
    better: str,
) -> Axis:
    """From 0, or the lowest where that is negative, to 1 for shares and to a little above the highest for others."""
    marks = [0.0, value, *(interval or ()), *(floor or ())]
    low, high = min(marks), max(marks)
    high = 1.0 if better == "higher" and high <= 1 else high + 0.05 * (high - low) or 1.0

    def place(mark: float) -> float:
        return round(2 + 96 * (mark - low) / (high - low), 2)

    def part(ends: tuple[float, float] | None) -> tuple[float, float] | None:
        return ends and (place(ends[0]), place(ends[1]))

    return Axis(place(value), part(interval), part(floor), (f"{low:.2g}", _short(high)))


# -- text ----------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Four significant digits, without an exponent where one can."""
    if value == 0:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits <= 7 else f"{value:.3g}"


def span(low: float, high: float) -> str:
    """A range, as exact as two digits of its width are."""
    if not low < high:
        return number(low)
    digits = _decimals(high - low)
    return f"{low:,.{digits}f} – {high:,.{digits}f}" if digits <= 7 else f"{low:.3g} – {high:.3g}"


def _decimals(width: float) -> int:
    """How many show two digits of `width`."""
    return max(0, 1 - math.floor(math.log10(width))) if width > 0 else 0


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def show(value: Any) -> str:
    """A protocol entry as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)) and len(value) > LONG:
        return f"{len(value)} values, {show(value[0])} … {show(value[-1])}"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {show(v)}" for k, v in value.items())
    return str(value)


# -- what both forms for people show -------------------------------------------------------------------------------


def essentials(report: Report) -> dict[str, str]:
    """What a number means nothing without: samples, sampler, guidance, features, reference."""
    samples, sampling, reference = (
        report.protocol.get(part, {}) for part in ("samples", "sampling", "reference")
    )
    steps = sampling.get("steps", UNKNOWN)
    networks = dict.fromkeys(parse(name).network for name in report.scores)
    return {
        "samples": " of ".join(filter(None, (_images(samples), _known(samples, "size")))),
        "sampler": show(sampling.get("sampler", UNKNOWN))
        + ("" if steps == UNKNOWN else f", {show(steps)} steps"),
        "guidance": _guidance(sampling),
        "features": ", ".join(networks),
        "reference": ", ".join(
            filter(None, (show(reference.get("source", UNKNOWN)), _images(reference)))
        ),
    }


def _known(entries: dict[str, Any], name: str) -> str:
    value = entries.get(name, UNKNOWN)
    return "" if value == UNKNOWN else show(value)


def _images(entries: dict[str, Any]) -> str:
    count = entries.get("count")
    return f"{count:,} images" if isinstance(count, int) else ""


def _guidance(sampling: dict[str, Any]) -> str:
    scale = sampling.get("cfg_scale", UNKNOWN)
    if scale == UNKNOWN:
        return UNKNOWN
    parts = _extrapolation(sampling) if scale != 1 else []
    if "classifier" in sampling:
        parts.append(
            f"classifier scale {show(sampling.get('classifier_scale', UNKNOWN))} by {sampling['classifier']}"
        )
    return ", ".join(parts) or "none"


def _extrapolation(sampling: dict[str, Any]) -> list[str]:
    """From the null class, or from a weaker network, in parts."""
    interval, channels = sampling.get("cfg_interval"), sampling.get("cfg_channels")
    weaker = f" from {sampling['guide']}" if "guide" in sampling else ""
    parts = [f"{'autoguidance' if weaker else 'CFG'} scale {show(sampling['cfg_scale'])}{weaker}"]
    if isinstance(interval, list) and interval != [0, 1]:
        parts.append(f"times {show(interval[0])} to {show(interval[1])}")
    if isinstance(channels, int):
        parts.append(f"{channels} channels")
    return parts


@dataclass(frozen=True)
class ClassTable:
    """Classes, worst first; of many classes the worst and the best, and how many are left out between them."""

    worst: list[ClassRow]
    best: list[ClassRow]
    left_out: int


def class_table(classes: Sequence[ClassRow]) -> ClassTable:
    """Which classes to show. The worst have the largest distance; without distances, the smallest share recognised."""
    ordered = sorted(classes, key=_badness, reverse=True)
    if len(ordered) <= LONG:
        return ClassTable(ordered, [], 0)
    half = LONG // 2
    return ClassTable(ordered[:half], ordered[-half:], len(ordered) - 2 * half)


def _badness(row: ClassRow) -> tuple[float, float]:
    nothing = -math.inf
    return nothing if row.fd is None else row.fd, nothing if row.accuracy is None else -row.accuracy


def copies(found: Memorisation) -> str:
    """Near-copies in words."""
    return (
        f"By {found.by}: {found.share:.1%} of {found.checked:,} samples are near-copies of one of {found.count:,} "
        f"images of {found.against}; of real images, {found.real_share:.1%} are as near to another one."
    )


# -- Markdown ------------------------------------------------------------------------------------------------------


def to_text(report: Report) -> str:
    """The headline table for a terminal."""
    lines = [("score", "value", "real against real", "N")]
    for row in rows(report):
        spread = f"({row.spread})" if "–" in row.spread else row.spread
        known = (f"{row.value} {spread}".strip(), with_brackets(row.floor, row.floor_of), row.count)
        lines.append(
            (row.name, *(known if row.value else (f"not available: {row.remark}", "", "")))
        )
    widths = [max(len(line[i]) for line in lines if line[3]) for i in range(4)]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def to_markdown(report: Report) -> str:
    """The report without its pictures."""
    parts = [f"# {report.title}", table(("", ""), essentials(report).items())]
    parts += (
        ["\n".join(f"- **Note:** {_cell(note)}" for note in report.notes)] if report.notes else []
    )
    parts += ["## Scores", _scores_table(report)]
    parts += [f"## {CLASSES}", _classes_table(report.classes)] if report.classes else []
    parts += [f"## {UNCERTAINTY}", _limits_table(report.uncertainty)] if report.uncertainty else []
    parts += (
        [f"## {MEMORISATION}", *map(copies, report.memorisation)] if report.memorisation else []
    )
    for section, entries in report.protocol.items():
        parts += [
            f"## Protocol: {section}",
            table(("", ""), ((name, show(v)) for name, v in entries.items())),
        ]
    return "\n\n".join(parts) + "\n"


def _scores_table(report: Report) -> str:
    head = ("score", "value", "95% or ±", "real against real", "N", "")
    return table(
        head,
        (
            (
                f"{row.name} {arrow(row.better)}",
                f"**{row.value}**" if row.value else "not available",
                row.spread,
                with_brackets(row.floor, row.floor_of),
                row.count,
                row.remark,
            )
            for row in rows(report)
        ),
    )


def _classes_table(classes: Sequence[ClassRow]) -> str:
    shown = class_table(classes)
    between = [(f"… {shown.left_out:,} more in report.json …", *[""] * 4)] if shown.left_out else []
    lines = [*map(class_cells, shown.worst), *between, *map(class_cells, shown.best)]
    return table(("class", "N", "recognised", "FD", "real against real"), lines)


def class_cells(row: ClassRow) -> tuple[str, str, str, str, str]:
    """A class as text: label, numbers of images, share recognised, distance, distance of real images."""
    share = "–" if row.accuracy is None else f"{row.accuracy:.1%}"
    distances = ("–" if d is None else number(d) for d in (row.fd, row.floor_fd))
    return (row.label, _count(row.samples, row.reference), share, *distances)  # type: ignore[return-value]


def _limits_table(uncertainty: Sequence[Extrapolated]) -> str:
    return table(
        ("score", "with so many samples", "with endlessly many, ± of the line"),
        map(limit_cells, uncertainty),
    )


def limit_cells(found: Extrapolated) -> tuple[str, str, str]:
    """An extrapolation as text: name, distances by number of samples, limit with the deviation of the line's fit."""
    sizes = "; ".join(
        f"{number(d)} at {size:,}" for size, d in zip(found.sizes, found.distances, strict=True)
    )
    if found.limit is None:
        return found.name, sizes or "–", f"not available: {found.reason}"
    return found.name, sizes, f"{number(found.limit)} {_spread(None, found.deviation)}".strip()


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in (head, rule, *lines))


def _cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def with_brackets(text: str, more: str) -> str:
    """A text, and more in brackets where there is more."""
    return f"{text} ({more})" if more else text


def arrow(better: str) -> str:
    """Where a score should go."""
    return "↓" if better == "lower" else "↑"


# -- HTML ----------------------------------------------------------------------------------------------------------


def to_html(report: Report) -> str:
    """The report as one page that needs nothing else."""
    return render(
        "report.html.j2",
        report=report,
        groups=groups(report),
        essentials=essentials(report),
        classes=class_table(report.classes),
        sections=[*dict.fromkeys((*SECTIONS, *report.figures))],
    )


def render(template: str, *folders: Path, **values: Any) -> str:
    """A page from a template of these folders or this one, which knows this module's ways of showing values."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "show": show,
        "embed": embed,
        "number": number,
        "arrow": arrow,
        "copies": copies,
        "class_cells": class_cells,
        "limit_cells": limit_cells,
    }
    return pages.get_template(template).render(**values)


def embed(picture: Image.Image) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
