"""The report of an evaluation: report.json for programs, report.md and report.html for people."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dit.evaluation.metrics.bootstrap import Extrapolation
from dit.evaluation.metrics.compute import RealVsReal, Score
from dit.evaluation.metrics.per_class import ClassRow, Recognition
from dit.evaluation.protocol import UNKNOWN
from dit.report.page import Page, Section, software_subtitle
from dit.report.score_names import MEANINGS, parse
from dit.report.table import NOTHING, NUMBER, Axis, Cell, Row, Table
from dit.report.text import arrow, counted, number, plus_minus, show, span
from dit.report.verdict import Copies, verdict
from dit.utils.files import write_json
from dit.utils.outputs import create_folder, is_record, require_own_file, signature
from dit.utils.pictures import write_png

REPORT, PAGES, GRID = "report.json", ("report.md", "report.html"), "grid.png"
RECOGNISED = "digits recognised"
FORMAT = 2  # of report.json; version 1 did not name its format
MOST_CLASSES = 20  # that a table shows
SAMPLES, CLASSES, UNCERTAINTY, MEMORISATION, TRAINING = (
    *("Samples", "Classes", "Uncertainty", "Memorisation", "Training"),
)
SECTIONS = (SAMPLES, CLASSES, UNCERTAINTY, MEMORISATION, TRAINING)  # in the order of the page
COLUMNS = ("score", "value", "real vs. real", "samples / reference")  # in a terminal
NO_RANGE = Cell(NOTHING, "range")
ABOUT_SCORES = (
    "“Real vs. real” is what images of the reference score against other images of it, over "
    "several random splits. Samples with such a score are not significantly worse than real "
    "images. Compare "
    "scores at equal protocol and equal N only: dit compare checks two reports."
)
ABOUT_CLASSES = (
    "Worst first: by distance where it is known, else by the share recognised. Distances of few "
    "images are high. Compare them with real images of the same class, or at equal N."
)
ABOUT_LIMITS = (
    "A Fréchet distance falls as samples are added. The limit is read off a straight line over "
    "1/N (1911.07023). ± is how well the points fit that line; the noise of the samples is not "
    "in it, but in the interval of the score."
)


@dataclass(frozen=True)
class Digits:
    """How many samples, and how many real digits, an SVM recognises; or why that is unknown."""

    samples: Recognition | None = None
    real: Recognition | None = None
    reason: str | None = None


@dataclass(frozen=True)
class NearCopies:
    """How many of the `checked` samples are near-copies of one of `count` images of `against`.

    Args:
        share: of the samples; `real_share`: of real images that are as near to another one.
        by: what measures nearness: pixels, or the features of a network.
    """

    share: float
    real_share: float
    checked: int
    against: str
    count: int
    by: str

    def __str__(self) -> str:
        return (
            f"By {self.by}: {self.share:.1%} of {self.checked:,} samples are near-copies of one "
            f"of {self.count:,} images of {self.against}. Of real images, {self.real_share:.1%} "
            "are as near to another one."
        )


@dataclass(frozen=True)
class Report:
    """All results of an evaluation.

    Args:
        scores: by name, as are `real_vs_real`, `intervals` (95%) and `uncertainty`, where known.
        protocol: section -> entry -> value, plain JSON values.
        digits: only where the reference is the digits.
        figures: section -> caption -> picture; `grid`: the samples alone, in a file.
        notes: what to know before reading any number.
    """

    title: str
    scores: dict[str, Score]
    real_vs_real: dict[str, RealVsReal]
    protocol: dict[str, dict[str, Any]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    digits: Digits | None = None
    classes: Sequence[ClassRow] = ()
    uncertainty: Mapping[str, Extrapolation] = field(default_factory=dict)
    memorisation: Sequence[NearCopies] = ()
    figures: dict[str, dict[str, Image.Image]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    grid: Image.Image | None = None

    @property
    def verdict(self) -> str:
        """One sentence about the scores."""
        values = {name: score.value for name, score in self.scores.items()}
        copies = [Copies(one.share, one.real_share) for one in self.memorisation]
        return verdict(values, self.real_vs_real, copies)


def claim_folder(out: Path) -> None:
    """Create a folder for a report; refuse one with other files of the report's names."""
    create_folder(out)
    # report.json, which is written first, says whose the others are
    if not is_report(out / REPORT):
        for name in (REPORT, *PAGES, GRID):
            require_own_file(out / name, "evaluate", is_report)


def is_report(file: Path) -> bool:
    """Whether a file is the report.json of an evaluation, of any version."""
    return is_record(file, {"title", "scores", "protocol"})


def write_report(report: Report, out: Path) -> list[Path]:
    """Write report.json, report.md, report.html and grid.png into `out`; return their paths."""
    write_json(out / REPORT, to_json(report))
    pages = to_page(report).write(out / "report")
    if report.grid is None:
        return [out / REPORT, *pages]
    write_png(report.grid, out / GRID)
    return [out / REPORT, *pages, out / GRID]


def to_json(report: Report) -> dict[str, Any]:
    """Return all but the figures as plain JSON values; a missing score is null with a reason."""
    digits, limits = report.digits, report.uncertainty.items()
    return {
        "format": FORMAT,
        "title": report.title,
        "verdict": report.verdict,
        "scores": {name: _score_json(report, name) for name in report.scores},
        "digits_recognised": digits
        and {
            "found": digits.samples and dataclasses.asdict(digits.samples),
            "floor": digits.real and dataclasses.asdict(digits.real),
            "reason": digits.reason,
        },
        "classes": [dataclasses.asdict(row) for row in report.classes],
        "uncertainty": [{"name": name, **dataclasses.asdict(limit)} for name, limit in limits],
        "memorisation": [dataclasses.asdict(copies) for copies in report.memorisation],
        "protocol": report.protocol,
        "notes": list(report.notes),
    }


def _score_json(report: Report, name: str) -> dict[str, Any]:
    score = report.scores[name].to_json()
    interval, real = report.intervals.get(name), report.real_vs_real.get(name)
    del score["name"]  # it is the key
    return {
        **score,
        "interval": interval and list(interval),
        "floor": real and dataclasses.asdict(real),
    }


def to_text(report: Report) -> str:
    """Return verdict, table of scores and missing ones for a terminal."""
    table = scores_table(report)
    scores = table.select(COLUMNS).to_text() if table.rows else ""
    return "\n".join(filter(None, (report.verdict, scores, missing_scores(report))))


def to_page(report: Report) -> Page:
    protocol = report.protocol
    table = scores_table(report)
    paragraphs = [*filter(None, [missing_scores(report)]), ABOUT_SCORES]
    scores = Section("Scores", table if table.rows else None, paragraphs)
    return Page(
        report.title,
        software_subtitle(protocol.get("software", {})),
        essentials(report.protocol, report.scores),
        [scores, *_sections(report), Section("Protocol", protocol=protocol)],
        "The same numbers for programs: report.json.",
        verdict=report.verdict,
        notes=report.notes,
        generator=signature("evaluate"),
    )


def _sections(report: Report) -> list[Section]:
    """Return the sections between scores and protocol."""
    tables: dict[str, Table] = {}
    texts: dict[str, Sequence[str]] = {MEMORISATION: [*map(str, report.memorisation)]}
    if report.classes:
        tables[CLASSES], texts[CLASSES] = classes_table(report.classes), [ABOUT_CLASSES]
    # reasons alone say nothing that the number of samples does not
    if any(limit.limit is not None for limit in report.uncertainty.values()):
        tables[UNCERTAINTY], texts[UNCERTAINTY] = limits_table(report.uncertainty), [ABOUT_LIMITS]

    sections = []
    for title in dict.fromkeys((*SECTIONS, *report.figures)):
        figures = report.figures.get(title, {})
        kind = "pixel" if title in (SAMPLES, MEMORISATION) else "chart"
        text = texts.get(title, ())
        sections.append(Section(title, tables.get(title), text, figures, kind))
    return sections


# -- scores ----------------------------------------------------------------------------------------


def scores_table(report: Report) -> Table:
    """Return all scores that have a value, network by network.

    The digits recognised are of no network, and come first.
    """
    networks: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for score in _all_scores(report):
        if score.value is None:
            continue
        row = _score_row(report, score, score.value)
        if score.name == RECOGNISED:
            rows.append(row)
        else:
            networks.setdefault(parse(score.name).network, []).append(row)

    for network, scores in networks.items():
        if len(networks) > 1:
            rows.append(Row([Cell(f"features of {network}")], "group"))
        rows += scores
    return Table((*COLUMNS, "meaning"), rows).without_empty_columns()


def _all_scores(report: Report) -> list[Score]:
    first = [digits_score(report.digits)] if report.digits else []
    return [*first, *report.scores.values()]


def missing_scores(report: Report) -> str:
    """Return the scores that are not available, by reason; "" if there are none."""
    reasons: dict[str, list[str]] = {}
    for score in _all_scores(report):
        if score.value is None:
            reasons.setdefault(str(score.reason), []).append(score.name)
    if not reasons:
        return ""
    parts = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
    return f"Not available: {'; '.join(parts)}."


def _score_row(report: Report, score: Score, known: float) -> Row:
    name = score.name
    title = Cell(f"{name} {arrow(score.direction)}", "name")
    interval, real = report.intervals.get(name), real_range(report, name)
    text = "{:.2%}".format if name == RECOGNISED else number
    written, spread = text(known), ""
    if interval:
        spread = span(*interval)
    elif score.deviation is not None:
        written, spread = plus_minus(known, score.deviation)
    real_cell = NO_RANGE
    if real:
        ends = text(real.low) if real.low == real.high else span(real.low, real.high)
        real_cell = Cell(ends, "range", real_count(real))
    value = Cell(written, "value", spread, strong=True)
    label = f"{name}: {value.plain}; real vs. real {real_cell.plain}"
    axis = _axis(known, score.direction, interval, real, label)
    return Row(
        [
            title,
            dataclasses.replace(value, axis=axis),
            real_cell,
            Cell(_count(score.samples, score.reference), NUMBER),
            Cell(MEANINGS.get(parse(name).kind, ""), "remark", score.note or ""),
        ]
    )


def real_range(report: Report, name: str) -> RealVsReal | None:
    """Return what real images score; for digits it is one number."""
    if name != RECOGNISED:
        return report.real_vs_real.get(name)
    real = report.digits and report.digits.real
    share = real.accuracy if real else 0.0
    return RealVsReal(share, share, share, 0, real.count, None) if real else None


def digits_score(digits: Digits) -> Score:
    """Return the share of recognised digits as a score."""
    note = "by an SVM trained on the real ones, at 8x8"
    if digits.samples is None:
        return Score(RECOGNISED, None, "higher", 0, reason=digits.reason)
    return Score(RECOGNISED, digits.samples.accuracy, "higher", digits.samples.count, note=note)


def real_count(real: RealVsReal) -> str:
    """Return how many real images were scored against others, and how often."""
    count = f"N = {real.samples:,}"
    return f"{count}, {counted(real.splits, 'split')}" if real.splits else count


def _count(samples: int, reference: int | None) -> str:
    return f"{samples:,}" if reference is None else f"{samples:,} / {reference:,}"


def _axis(
    value: float,
    direction: str,
    interval: tuple[float, float] | None,
    real: RealVsReal | None,
    label: str,
) -> Axis:
    """Return a score on a line from 0, or the lowest mark, to 1 for shares, or the highest."""
    ends = (real.low, real.high) if real else None
    marks = [0.0, value, *(interval or ()), *(ends or ())]
    low, high = min(marks), max(marks)
    # a share of 0.8 is drawn on a line to 1, a density of 1.2 is not
    is_share = direction == "higher" and high <= 1
    # `or`: a distance of exactly 0 still needs a line of some length
    high = 1.0 if is_share else high + 0.05 * (high - low) or 1.0

    def percent(mark: float) -> float:
        return round(2 + 96 * (mark - low) / (high - low), 2)

    def percents(part: tuple[float, float] | None) -> tuple[float, float] | None:
        return part and (percent(part[0]), percent(part[1]))

    top = f"{high:,.0f}" if high >= 100 else f"{high:.2g}"
    return Axis(percent(value), percents(interval), percents(ends), (f"{low:.2g}", top), label)


# -- classes and limits ----------------------------------------------------------------------------


def classes_table(classes: Sequence[ClassRow]) -> Table:
    """Return all classes, worst first; of many classes the worst and the best."""
    # classes without a distance come last, whatever their accuracy
    shown = sorted(classes, key=_badness, reverse=True)
    hidden, half = len(shown) - MOST_CLASSES, MOST_CLASSES // 2
    if hidden > 0:
        shown = shown[:half] + shown[-half:]

    largest = max((row.fd for row in shown if row.fd is not None), default=0.0)
    rows = [_class_row(row, largest) for row in shown]
    if hidden > 0:
        between = f"{hidden:,} more between the {half} worst and the {half} best: in report.json"
        rows.insert(half, Row([Cell(between)], "between"))
    table = Table(("class", "N", "recognised ↑", "FD ↓", "real vs. real"), rows)
    return table.without_empty_columns()


def _class_row(row: ClassRow, largest: float) -> Row:
    share, length = row.accuracy, row.fd / largest if row.fd is not None and largest else None
    return Row(
        [
            Cell(row.label, "name"),
            Cell(_count(row.samples, row.reference), NUMBER),
            Cell(NOTHING if share is None else f"{share:.1%}", NUMBER, bar=share),
            Cell(NOTHING if row.fd is None else number(row.fd), NUMBER, bar=length),
            Cell(NOTHING if row.floor_fd is None else number(row.floor_fd), NUMBER),
        ]
    )


def _badness(row: ClassRow) -> tuple[float, float]:
    distance = -math.inf if row.fd is None else row.fd
    return distance, -math.inf if row.accuracy is None else -row.accuracy


def limits_table(limits: Mapping[str, Extrapolation]) -> Table:
    rows = []
    for name, extrapolation in limits.items():
        points = zip(extrapolation.sizes, extrapolation.distances, strict=True)
        text = "; ".join(f"{number(distance)} at {size:,}" for size, distance in points)
        if extrapolation.limit is None:
            limit = Cell(f"not available: {extrapolation.reason}", "missing")
        else:
            written, spread = plus_minus(extrapolation.limit, extrapolation.deviation or 0.0)
            limit = Cell(written, NUMBER, spread, strong=True)
        rows.append(Row([Cell(name, "name"), Cell(text or NOTHING, "remark"), limit]))
    return Table(("score", "distance by number of samples", "limit, ± of the line"), rows)


# -- what the numbers mean nothing without ---------------------------------------------------------


def essentials(
    protocol: Mapping[str, Mapping[str, Any]], scores: Mapping[str, object]
) -> dict[str, str]:
    """Return samples, sampler, guidance, features and reference in words."""
    samples, sampling, reference = (
        protocol.get(part, {}) for part in ("samples", "sampling", "reference")
    )
    size, steps = samples.get("size", UNKNOWN), sampling.get("steps", UNKNOWN)
    counts = [_images(samples), "" if size == UNKNOWN else show(size)]
    source = show(reference.get("source", UNKNOWN))
    sampler = show(sampling.get("sampler", UNKNOWN))
    return {
        "samples": " of ".join(filter(None, counts)),
        "sampler": sampler if steps == UNKNOWN else f"{sampler}, {show(steps)} steps",
        "guidance": _guidance(sampling),
        "features": ", ".join(dict.fromkeys(parse(name).network for name in scores)),
        "reference": ", ".join(filter(None, (source, _images(reference)))),
    }


def _images(entries: Mapping[str, Any]) -> str:
    count = entries.get("count")
    return f"{count:,} images" if isinstance(count, int) else ""


def _guidance(sampling: Mapping[str, Any]) -> str:
    scale = sampling.get("cfg_scale", UNKNOWN)
    if scale == UNKNOWN:
        return UNKNOWN

    parts = []
    if scale != 1:
        guide, interval = sampling.get("guide"), sampling.get("cfg_interval")
        channels = sampling.get("cfg_channels")
        name = f"autoguidance scale {show(scale)} from {guide}" if guide else ""
        parts.append(name or f"CFG scale {show(scale)}")
        if isinstance(interval, list) and interval != [0, 1]:
            parts.append(f"times {show(interval[0])} to {show(interval[1])}")
        if isinstance(channels, int):
            parts.append(f"{channels} channels")
    if classifier := sampling.get("classifier"):
        weight = show(sampling.get("classifier_scale", UNKNOWN))
        parts.append(f"classifier scale {weight} by {classifier}")
    return ", ".join(parts) or "none"
