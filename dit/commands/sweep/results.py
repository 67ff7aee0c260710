"""What a sweep found: sweep.json for machines, sweep.md and sweep.html for people, and figures."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dit.commands.sweep import charts
from dit.commands.sweep.charts import varied
from dit.commands.sweep.points import Point, classifier_scale, describe
from dit.commands.sweep.ranking import Ranking
from dit.config import PACE, SamplerConfig, SweepConfig, to_json
from dit.errors import UserError
from dit.evaluation.metrics.bootstrap import interval
from dit.evaluation.metrics.compute import Range
from dit.evaluation.protocol import UNKNOWN
from dit.report.evaluation_page import (
    SHARES,
    arrow,
    floor_of,
    number,
    parse,
    render,
    show,
    span,
    table,
    with_brackets,
)
from dit.utils.files import reraise_as_user_error, write_atomically, write_json

FORMAT = 1  # of sweep.json
GUIDING = (
    "guide",
    "guide_sha256",
    "classifier",
    "classifier_sha256",
)  # entries of points that another network guides
LISTED, PRINTED = 4, 10  # settings in a sentence, and in the table of the terminal
ALWAYS = (
    "sampler",
    "steps",
    "cfg_scale",
)  # flags that the command names even where they are the default


@dataclass(frozen=True)
class Sweep:
    """All that a sweep found; `floor` by the name of each score, `weights` by the EMA length of each setting."""

    title: str
    cfg: SweepConfig
    points: list[Point]
    ranking: Ranking
    floor: dict[str, Range]
    out: Path
    weights: Mapping[float | None, Path] = field(default_factory=dict)

    @property
    def example(self) -> Point:
        """The point that says which scores there are: the best, for one whose images are NaN has none of the others."""
        return self.points[self.ranking.best if self.ranking.order else 0]


def check_count(out: Path, num_samples: int) -> None:
    """Make sure that results that are there are of as many images: they would be replaced.

    Raises:
        UserError: they are not, or are damaged.
    """
    file = out / "sweep.json"
    if not file.exists():
        return
    with reraise_as_user_error(
        file, "the results that dit sweep wrote", "remove it, or choose another --out"
    ):
        before = json.loads(file.read_text())["asked"]["num_samples"]
    if before != num_samples:
        raise UserError(
            f"--num-samples {num_samples} for {out}, whose results are of {before} images a setting",
            "the same number for all settings of a folder",
            "choose another --out",
        )


def write(sweep: Sweep) -> list[Path]:
    """Write results, pages and figures into the folder of the sweep; returns their paths."""
    paths = [sweep.out / f"sweep.{suffix}" for suffix in ("json", "md", "html")]
    drawn = draw(sweep)
    write_json(paths[0], to_plain(sweep))
    for path, text in zip(paths[1:], (to_markdown(sweep), to_html(sweep, drawn)), strict=True):
        with write_atomically(path) as beside:
            beside.write_text(text, encoding="utf-8")
    for name, (_, picture) in drawn.items():
        paths.append(sweep.out / f"{name}.png")
        with write_atomically(paths[-1]) as beside:
            picture.save(beside, format="PNG")
    return paths


def draw(sweep: Sweep) -> dict[str, tuple[str, Image.Image]]:
    """File name -> caption and picture, of those that there is something to draw for."""
    points, ranking, floor = sweep.points, sweep.ranking, sweep.floor
    drawn: dict[str, tuple[str, Image.Image]] = {}
    if guidance := charts.against_guidance(points, ranking, floor):
        drawn["fd-against-guidance"] = "Scores against guidance", guidance
    if judged := charts.against_guidance(points, ranking, floor, "classifier-scale"):
        drawn["fd-against-classifier"] = "Scores against the classifier's scale", judged
    if averaged := charts.against_guidance(points, ranking, floor, "ema-length"):
        drawn["fd-against-ema-length"] = "Scores against the length of the EMA", averaged
    if cost := charts.against_evaluations(points, ranking, floor):
        drawn["quality-against-evaluations"] = "Quality against cost", cost
    if found := charts.strip(points, ranking, sweep.out):
        drawn[f"images-by-{found[0]}"] = f"The same images, by {found[0]}", found[1]
    return drawn


def to_plain(sweep: Sweep) -> dict[str, Any]:
    """Plain JSON values; a score that is missing is null, its reason lies in the file of its point."""
    points, ranking = sweep.points, sweep.ranking
    return {
        "format": FORMAT,
        "title": sweep.title,
        "asked": to_json(sweep.cfg),
        "summary": [*sentences(sweep), *warnings(sweep)],
        "best": points[ranking.best].key if ranking.order else None,
        "tied_with_best": [points[i].key for i in ranking.tied],
        "cheapest_of_these": points[ranking.cheapest(points)].key if ranking.order else None,
        "points": [
            _plain_point(point, ranking.differences.get(i)) for i, point in enumerate(points)
        ],
        "floor": {name: asdict(found) for name, found in sweep.floor.items()},
        "protocol": common_protocol(points),
    }


def _plain_point(point: Point, difference: tuple[float, float] | None) -> dict[str, Any]:
    setting = point.setting
    return {
        "key": point.key,
        "ema_length": setting.ema_length,
        "sampler": setting.sampler,
        "steps": setting.steps,
        "cfg_scale": setting.cfg_scale,
        "cfg_interval": list(setting.cfg_interval),
        "classifier_scale": classifier_scale(setting),
        "evaluations": point.evaluations,
        "seconds": point.seconds,
        "scores": {name: score.value for name, score in point.scores.items()},
        "interval": list(interval(point.distance, point.replicates))
        if has_interval(point)
        else None,
        "further_than_best": difference and list(difference),
    }


def has_interval(point: Point) -> bool:
    """Whether a point's distance has an interval."""
    return point.first.value is not None and bool(point.replicates)


def common_protocol(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """The entries of the protocol that all points share, and those that tell which network guides some of them."""
    protocols = [point.protocol for point in points if point.protocol]

    def shared(section: str, name: str) -> bool:
        told = [entries[section][name] for entries in protocols if name in entries[section]]
        return told == told[:1] * (len(told) if name in GUIDING else len(protocols))

    every = {
        section: {name: value for entries in protocols for name, value in entries[section].items()}
        for section in (protocols[0] if protocols else ())
    }
    return {
        section: {name: value for name, value in entries.items() if shared(section, name)}
        for section, entries in every.items()
    }


# -- in words ------------------------------------------------------------------------------------------------------


def sentences(sweep: Sweep) -> list[str]:
    """What was found: the best, what can not be told apart from it, the cheapest of these."""
    points, ranking = sweep.points, sweep.ranking
    if not ranking.order:
        return [f"No setting has a distance: {points[0].first.reason}."]
    best, tied = points[ranking.best], [points[i] for i in ranking.tied]
    floor = sweep.floor.get(best.first.name)
    real = f"; real images against others {_floor_text(floor)}" if floor else ""
    said = [f"Best: {describe(best.setting)}: {best.first.name} {with_interval(best)}{real}."]
    if len(ranking.order) == 1:
        return said
    if not best.replicates:
        return [*said, "How sure that is is not known: it was scored with --bootstrap 0."]
    if not tied:
        return [*said, "Every other setting is worse, beyond the noise of the samples."]
    others = "1 setting" if len(tied) == 1 else f"{len(tied)} settings"
    more = f"; and {len(tied) - LISTED} more" if len(tied) > LISTED else ""
    listed = "; ".join(describe(point.setting) for point in tied[:LISTED])
    return [*said, f"{others} can not be told apart from it: {listed}{more}.", _cheapest(sweep)]


def _floor_text(floor: Range) -> str:
    return with_brackets(span(floor.low, floor.high), floor_of(floor))


def _cheapest(sweep: Sweep) -> str:
    points, ranking = sweep.points, sweep.ranking
    best, cheapest = points[ranking.best], points[ranking.cheapest(points)]
    if cheapest.evaluations == best.evaluations:
        return f"None of these is cheaper than the best, which takes {best.evaluations} network calls an image."
    return (
        f"The cheapest of these is {describe(cheapest.setting)}: {cheapest.evaluations} network calls an image "
        f"instead of {best.evaluations}, {cheapest.first.name} {with_interval(cheapest)}."
    )


def warnings(sweep: Sweep) -> list[str]:
    """What to know before trusting that."""
    first = sweep.example.first
    few = [f"{first.name}: {first.note}."] if first.note else []
    return few + _missing(sweep) + [_beyond(*edge) for edge in sweep.ranking.edges]


def _missing(sweep: Sweep) -> list[str]:
    """Which settings have no distance, and why; nothing where none has one."""
    missing = (
        [point for point in sweep.points if point.first.value is None]
        if sweep.ranking.order
        else []
    )
    if not missing:
        return []
    said = "1 setting has" if len(missing) == 1 else f"{len(missing)} settings have"
    more = f"; and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
    listed = "; ".join(
        f"{describe(point.setting)} ({point.first.reason})" for point in missing[:LISTED]
    )
    return [f"{said} no distance: {listed}{more}."]


def _beyond(axis: str, end: str, value: float) -> str:
    """That better settings may lie beyond the sweep."""
    if axis == "steps":
        most, more = ("most", "more") if end == "largest" else ("fewest", "fewer")
        return f"The best takes the {most} steps of the sweep ({value:g}): {more} may be as good or better."
    comparative = "larger" if end == "largest" else "smaller"
    return f"The best lies at the {end} {axis} of the sweep ({value:g}): a {comparative} one may be better."


def with_interval(point: Point) -> str:
    """A point's distance with its interval, as text."""
    if point.first.value is None:
        return "not available"
    around = span(*interval(point.distance, point.replicates)) if point.replicates else ""
    return with_brackets(number(point.first.value), around)


def command(sweep: Sweep) -> str:
    """What samples with the best setting."""
    setting = sweep.example.setting
    parts = ["dit", "sample", "--run", str(sweep.weights.get(setting.ema_length, sweep.cfg.run))]
    for flag in dataclasses.fields(SamplerConfig):
        value = getattr(setting, flag.name)
        if flag.name in ALWAYS or (value != flag.default and flag.name not in PACE):
            values = value if isinstance(value, tuple) else [value]
            parts.append("--" + flag.name.replace("_", "-"))
            parts += [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return shlex.join(parts)


# -- tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One setting as text."""

    kind: str  # "best", "tied" or ""
    setting: list[str]
    distance: str
    spread: str
    further: str
    scores: list[str]
    evaluations: str
    seconds: str


def columns(sweep: Sweep) -> dict[str, str]:
    """Scores beside the distance that are shown, by name, with their headings: without the first network's name.

    Of the first feature network all, of the others the distance only.
    """
    first, *others = sweep.example.scores
    shown = {}
    for name in others:
        score = parse(name)
        same = score.network == parse(first).network
        if not score.convention if same else score.kind in ("FID", "FD"):
            shown[name] = score.kind if same else name
    return shown


def setting_columns(sweep: Sweep) -> list[str]:
    """Axes on which the points differ; the scale where there is one point only."""
    return varied(sweep.points) or ["cfg-scale"]


def rows(sweep: Sweep) -> list[Row]:
    """All points, best first, those without a distance last."""
    ranking = sweep.ranking
    order = ranking.order + [i for i in range(len(sweep.points)) if i not in ranking.order]
    return [_row(sweep, i) for i in order]


def _row(sweep: Sweep, i: int) -> Row:
    point, ranking = sweep.points[i], sweep.ranking
    scores = map(point.value, columns(sweep))
    difference = ranking.differences.get(i)
    return Row(
        kind="best" if ranking.order and i == ranking.best else "tied" if i in ranking.tied else "",
        setting=[_value(point, axis) for axis in setting_columns(sweep)],
        distance="not available" if point.first.value is None else number(point.first.value),
        spread=span(*interval(point.distance, point.replicates)) if has_interval(point) else "",
        further=span(*difference) if difference else "",
        scores=["–" if value is None else number(value) for value in scores],
        evaluations=f"{point.evaluations:,}",
        seconds="–" if point.seconds is None else f"{point.seconds:,.1f}",
    )


def _value(point: Point, axis: str) -> str:
    value = charts.AXES[axis](point.setting)
    if axis == "interval":
        return "–" if point.setting.cfg_scale == 1 else "{:g}-{:g}".format(*value)
    return value if isinstance(value, str) else f"{value:g}"


def to_text(sweep: Sweep) -> str:
    """The findings and the first rows of the table, for a terminal."""
    headings = list(columns(sweep).values())
    shares = [headings.index(name) for name in SHARES if name in headings]
    head = (
        *setting_columns(sweep),
        sweep.example.first.name,
        "95%",
        *(headings[i] for i in shares),
        "calls",
    )
    found = rows(sweep)
    lines = [
        (*row.setting, row.distance, row.spread, *(row.scores[i] for i in shares), row.evaluations)
        for row in found[:PRINTED]
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    shown = ["  ".join(map(str.rjust, line, widths)) for line in (head, *lines)]
    left_out = [f"({len(found) - PRINTED} more in sweep.md)"] if len(found) > PRINTED else []
    return "\n".join(
        [*shown, *left_out, "", *sentences(sweep), *(f"Note: {text}" for text in warnings(sweep))]
    )


def to_markdown(sweep: Sweep) -> str:
    """The findings, all points, and what they share."""
    names = [
        f"{heading} {arrow(sweep.example.scores[name].direction)}"
        for name, heading in columns(sweep).items()
    ]
    head = [
        *setting_columns(sweep),
        f"{sweep.example.first.name} ↓",
        "95%",
        "further than the best, 95%",
        *names,
        "network calls an image",
        "seconds",
    ]
    lines = [
        [
            *row.setting,
            f"**{row.distance}**" if row.kind == "best" else row.distance,
            row.spread,
            "tied: " + row.further if row.kind == "tied" else row.further,
            *row.scores,
            row.evaluations,
            row.seconds,
        ]
        for row in rows(sweep)
    ]
    parts = [
        f"# {sweep.title}",
        *sentences(sweep),
        *(f"**Note:** {text}" for text in warnings(sweep)),
        table(head, lines),
    ]
    for section, entries in common_protocol(sweep.points).items():
        parts += [
            f"## Protocol: {section}",
            table(["", ""], ([name, show(v)] for name, v in entries.items())),
        ]
    return "\n\n".join(parts) + "\n"


def to_html(sweep: Sweep, drawn: dict[str, tuple[str, Image.Image]]) -> str:
    """One page that needs nothing else."""
    best = sweep.points[sweep.ranking.best] if sweep.ranking.order else None
    said = sentences(sweep)
    first = sweep.example.first.name
    floor = sweep.floor.get(first)
    return render(
        "sweep.html.j2",
        Path(__file__).parent,
        sweep=sweep,
        best=best,
        said=said[1:] if best else said,
        warnings=warnings(sweep),
        charts=drawn,
        rows=rows(sweep),
        columns=columns(sweep),
        axes=setting_columns(sweep),
        first=first,
        better=sweep.example.scores,
        floor_of=floor_of(floor) if floor else "",
        protocol=common_protocol(sweep.points),
        command=command(sweep) if best else "",
        essentials=essentials(sweep),
        describe=describe,
    )


def essentials(sweep: Sweep) -> dict[str, str]:
    """What the numbers mean nothing without."""
    cfg, shared = sweep.cfg, common_protocol(sweep.points)
    networks = dict.fromkeys(parse(name).network for name in sweep.example.scores)
    floor = sweep.floor.get(sweep.example.first.name)
    return {
        "settings": f"{len(sweep.points):,}",
        "images of each": f"{cfg.num_samples:,} from seed {cfg.seed}",
        **{
            name: str(path)
            for name, path in (("guide", cfg.guide), ("classifier", cfg.classifier))
            if path
        },
        "features": ", ".join(networks),
        "reference": show(shared.get("reference", {}).get("source", UNKNOWN)),
        "real against real": _floor_text(floor) if floor else UNKNOWN,
    }
