"""The report of an evaluation: report.json, report.md, report.html."""

import base64
import dataclasses
import io
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from dit.evaluation.metrics import Recognition, Score
from dit.files import replacing, write_json

UNKNOWN = "unknown"
LONG = 20  # entries of a list that are shown one by one


@dataclass(frozen=True)
class Digits:
    """How many of the samples an SVM recognises, and how many real digits; or why it is not known."""

    found: Recognition | None = None
    floor: Recognition | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """All that an evaluation found.

    Args:
        scores: by key, see `metrics.score_names`; `floor`: the same of real against real.
        protocol: section -> entry -> value, plain JSON values.
        digits: only where the reference is the digits.
        figures: caption -> picture.
    """

    title: str
    scores: dict[str, Score]
    floor: dict[str, Score]
    protocol: dict[str, dict[str, Any]]
    digits: Digits | None = None
    figures: dict[str, Image.Image] = field(default_factory=dict)


def write_report(report: Report, out: Path) -> list[Path]:
    """Write the three files into `out`; returns their paths."""
    paths = [out / f"report.{suffix}" for suffix in ("json", "md", "html")]
    write_json(paths[0], to_json(report))
    for path, text in zip(paths[1:], (to_markdown(report), to_html(report)), strict=True):
        with replacing(path) as beside:
            beside.write_text(text)
    return paths


def to_json(report: Report) -> dict[str, Any]:
    """Plain JSON values: every score with its floor, and null with a reason where there is none."""
    scores = {
        key: {
            **dataclasses.asdict(score),
            "floor": dataclasses.asdict(report.floor[key]) if key in report.floor else None,
        }
        for key, score in report.scores.items()
    }
    digits = dataclasses.asdict(report.digits) if report.digits else None
    return {"title": report.title, "scores": scores, "digits_recognised": digits, "protocol": report.protocol}


@dataclass(frozen=True)
class Row:
    """One line of the headline table, as text; without a value there is a reason."""

    name: str
    better: str
    value: str | None
    deviation: str
    floor: str
    count: str
    remark: str


def rows(report: Report) -> list[Row]:
    """The headline table."""
    table = [_digits_row(report.digits)] if report.digits else []
    return table + [_score_row(score, report.floor.get(key)) for key, score in report.scores.items()]


def _score_row(score: Score, floor: Score | None) -> Row:
    return Row(
        name=score.name,
        better=score.better,
        value=None if score.value is None else number(score.value),
        deviation="" if score.deviation is None else f"± {number(score.deviation)}",
        floor=_show_floor(floor),
        count=_count(score.samples, score.reference),
        remark=score.reason or score.note or "",
    )


def _digits_row(digits: Digits) -> Row:
    found, floor = digits.found, digits.floor
    return Row(
        name="digits recognised",
        better="higher",
        value=f"{found.accuracy:.2%}" if found else None,
        deviation="",
        floor=f"{floor.accuracy:.2%} (N = {floor.count:,})" if floor else "–",
        count=_count(found.count, None) if found else "–",
        remark=digits.reason or "as the class asked for, at 8x8, by an SVM trained on the real digits",
    )


def _show_floor(floor: Score | None) -> str:
    if floor is None or floor.value is None:
        return "–"
    return f"{number(floor.value)} (N = {floor.samples:,})"


def _count(samples: int, reference: int | None) -> str:
    return f"{samples:,}" if reference is None else f"{samples:,} / {reference:,}"


def number(value: float) -> str:
    """Four significant digits, without an exponent where one can."""
    if value == 0:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits <= 7 else f"{value:.3g}"


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


# -- the two forms for people ------------------------------------------------------------------------------------


def to_markdown(report: Report) -> str:
    """The report without its pictures."""
    lines = [f"# {report.title}", "", "| score | value | real against real | N | |", "|---|---|---|---|---|"]
    for row in rows(report):
        value = "not available" if row.value is None else f"**{row.value}** {row.deviation}".strip()
        arrow = "↓" if row.better == "lower" else "↑"
        lines.append(
            "| " + " | ".join(map(_cell, (f"{row.name} {arrow}", value, row.floor, row.count, row.remark))) + " |"
        )
    found = report.digits.found if report.digits else None
    if found:
        lines += ["", "## Recognised, by class", "", "| class | share |", "|---|---|"]
        lines += [f"| {_cell(label)} | {share:.1%} |" for label, share in found.per_class.items()]
    for section, entries in report.protocol.items():
        lines += ["", f"## {section}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(show(value))} |" for name, value in entries.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def to_html(report: Report) -> str:
    """The report as one page that needs nothing else."""
    from jinja2 import Environment, StrictUndefined

    source = (resources.files("dit.evaluation") / "report.html.j2").read_text()
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["show"] = show
    figures = {caption: (embed(picture), picture.width) for caption, picture in report.figures.items()}
    found = report.digits.found if report.digits else None
    return page.from_string(source).render(report=report, rows=rows(report), figures=figures, recognised=found)


def embed(picture: Image.Image) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
