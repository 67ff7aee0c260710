"""The results of a sweep: sweep.json for programs, sweep.md and sweep.html for people, charts."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dit.commands.sweep import charts
from dit.commands.sweep.earlier import RECORD
from dit.commands.sweep.points import Point, classifier_scale, describe, value_text
from dit.commands.sweep.ranking import Ranking
from dit.config import PERFORMANCE_FLAGS, SamplerConfig, SweepConfig, flag_name, to_json
from dit.evaluation.metrics.compute import RealVsReal
from dit.evaluation.protocol import UNKNOWN
from dit.report.evaluation_page import real_count
from dit.report.page import Highlight, Page, Section, software_subtitle
from dit.report.score_names import SHARES, parse
from dit.report.table import NUMBER, Cell, Row, Table
from dit.report.text import arrow, counted, number, show, span
from dit.utils.files import write_json
from dit.utils.outputs import signature
from dit.utils.pictures import write_png

FORMAT = 1  # of sweep.json
GUIDING = ("guide", "guide_sha256", "classifier", "classifier_sha256")  # only where they guide
LISTED, PRINTED = 4, 10  # settings in a sentence, and in the table of the terminal
ALWAYS = ("sampler", "steps", "cfg_scale")  # flags that the command names even if default
CALLS = "network calls"
ABOUT_SCALES = (
    "The band around a line holds 95% of what other noise would give, by resampling the images; "
    "of many lines only the best has one. The green band is what real images score against "
    "others of the reference, at the number of images named above. Precision and density measure "
    "how real single images look, recall and coverage how much of the variety of real images "
    "there is."
)
ABOUT_COSTS = (
    "Network calls are counted: guidance takes two where it is on. The dashed frontier is the "
    "least distance for the calls spent."
)
ABOUT_IMAGES = "Every column has the same noise and class; all else is as in the best setting."
ABOUT_TABLE = (
    "Best first. Tied settings cannot be told from the best: the 95% interval of the difference, "
    "of images from the same seeds and in the same resamples, holds 0. Each is compared with the "
    "best alone; of many comparisons, some are wrong by chance."
)


@dataclass(frozen=True)
class Sweep:
    """All results; `real_vs_real` by name of score, `weights` by EMA length of settings."""

    title: str
    cfg: SweepConfig
    points: list[Point]
    ranking: Ranking
    real_vs_real: dict[str, RealVsReal]
    out: Path
    weights: Mapping[float | None, Path] = field(default_factory=dict)

    @property
    def example(self) -> Point:
        """The best point: it has all scores, unlike a point whose images are NaN."""
        return self.points[self.ranking.best if self.ranking.order else 0]


def write(sweep: Sweep) -> list[Path]:
    """Write results, pages and charts into the folder of the sweep; return their paths."""
    drawn = draw(sweep)
    write_json(sweep.out / RECORD, to_plain(sweep))
    page = to_page(sweep, drawn.values())
    paths = [sweep.out / RECORD, *page.write(sweep.out / "sweep")]
    for name, section in drawn.items():
        paths.append(sweep.out / f"{name}.png")
        write_png(section.figures[section.title], paths[-1])
    return paths


def draw(sweep: Sweep) -> dict[str, Section]:
    """Return sections with the charts of all that varies, by file name."""
    given = sweep.points, sweep.ranking, sweep.real_vs_real
    guidance = charts.over_scale(*given, "cfg-scale")
    classifier = charts.over_scale(*given, "classifier-scale")
    average = charts.over_scale(*given, "ema-length")
    axis, images = charts.strip(sweep.points, sweep.ranking, sweep.out)
    drawn = (
        ("fd-against-guidance", "Scores over guidance", ABOUT_SCALES, guidance),
        ("fd-against-classifier", "Scores over the classifier's scale", ABOUT_SCALES, classifier),
        ("fd-against-ema-length", "Scores over the length of the EMA", ABOUT_SCALES, average),
        (
            "quality-against-evaluations",
            "Quality over cost",
            ABOUT_COSTS,
            charts.over_evaluations(*given),
        ),
        (f"images-by-{axis}", f"The same images, by {axis}", ABOUT_IMAGES, images),
    )
    sections = {}
    for name, title, about, picture in drawn:
        kind = "picture" if picture is images else "chart"
        if picture:
            sections[name] = Section(title, None, [about], {title: picture}, kind)
    return sections


def to_plain(sweep: Sweep) -> dict[str, Any]:
    """Return plain JSON values; the reason of a missing score lies in the file of its point."""
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
        "floor": {name: asdict(real) for name, real in sweep.real_vs_real.items()},
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
        "interval": point.interval and list(point.interval),
        "further_than_best": difference and list(difference),
    }


def common_protocol(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Return the entries of the protocol that all points share, and the networks that guide."""
    protocols = [point.protocol for point in points if point.protocol]
    common: dict[str, dict[str, Any]] = {}
    for section in protocols[0] if protocols else ():
        common[section] = {}
        for name in dict.fromkeys(name for record in protocols for name in record[section]):
            values = [record[section][name] for record in protocols if name in record[section]]
            # points without guidance have no guide: that is no difference of the others
            is_everywhere = name in GUIDING or len(values) == len(protocols)
            if is_everywhere and all(value == values[0] for value in values):
                common[section][name] = values[0]
    return common


# -- text ------------------------------------------------------------------------------------------


def sentences(sweep: Sweep) -> list[str]:
    """Return the best setting, those that cannot be told from it, and the cheapest of these."""
    points, ranking = sweep.points, sweep.ranking
    if not ranking.order:
        return [f"No setting has a distance: {points[0].first.reason}."]

    best = points[ranking.best]
    tied = [points[i] for i in ranking.tied]
    real = sweep.real_vs_real.get(best.first.name)
    beside = f"; real vs. real {_real_text(real)}" if real else ""
    first = f"Best: {describe(best.setting)}: {best.first.name} {_distance(best).plain}{beside}."
    if len(ranking.order) == 1:
        return [first]
    if not best.replicates:
        return [first, "Its uncertainty is unknown: it was scored with --bootstrap 0."]
    if not tied:
        return [first, "Every other setting is worse, beyond the noise of the samples."]

    listed = _listed([describe(point.setting) for point in tied])
    others = f"{counted(len(tied), 'setting')} cannot be told apart from it: {listed}."
    return [first, others, _cheapest(best, points[ranking.cheapest(points)])]


def _listed(items: Sequence[str]) -> str:
    listed = "; ".join(items[:LISTED])
    if len(items) > LISTED:
        listed += f"; and {len(items) - LISTED} more"
    return listed


def _real_text(real: RealVsReal) -> str:
    return f"{span(real.low, real.high)} ({real_count(real)})"


def _cheapest(best: Point, cheapest: Point) -> str:
    if cheapest.evaluations == best.evaluations:
        return f"None is cheaper than the best, which takes {best.evaluations} {CALLS} an image."
    return (
        f"The cheapest of these is {describe(cheapest.setting)}: {cheapest.evaluations} {CALLS} "
        f"an image instead of {best.evaluations}, {cheapest.first.name} "
        f"{_distance(cheapest).plain}."
    )


def warnings(sweep: Sweep) -> list[str]:
    """Return what to know before trusting the results."""
    first = sweep.example.first
    notes = [f"{first.name}: {first.note}."] if first.note else []
    missing = [
        f"{describe(point.setting)} ({point.first.reason})"
        for point in sweep.points
        if point.first.value is None
    ]
    if missing and sweep.ranking.order:
        verb = "has" if len(missing) == 1 else "have"
        settings = counted(len(missing), "setting")
        notes.append(f"{settings} {verb} no distance: {_listed(missing)}.")
    return notes + [_beyond(*edge) for edge in sweep.ranking.edges]


def _beyond(axis: str, end: str, value: float) -> str:
    """Return that better settings may lie beyond the sweep."""
    if axis == "steps":
        most, more = ("most", "more") if end == "largest" else ("fewest", "fewer")
        where = f"The best takes the {most} steps of the sweep ({value:g})"
        return f"{where}: {more} may be as good or better."
    comparative = "larger" if end == "largest" else "smaller"
    where = f"The best lies at the {end} {axis} of the sweep ({value:g})"
    return f"{where}: a {comparative} one may be better."


def command(sweep: Sweep) -> str:
    """Return the command that samples with the best setting."""
    setting = sweep.example.setting
    run = sweep.weights.get(setting.ema_length, sweep.cfg.run)
    parts = ["dit", "sample", "--run", str(run)]
    for flag in dataclasses.fields(SamplerConfig):
        value = getattr(setting, flag.name)
        is_changed = value != flag.default and flag.name not in PERFORMANCE_FLAGS
        if flag.name in ALWAYS or is_changed:
            values = value if isinstance(value, tuple) else [value]
            parts.append(flag_name(flag.name))
            parts += [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return shlex.join(parts)


# -- table and page --------------------------------------------------------------------------------


def points_table(sweep: Sweep) -> Table:
    """Return all points, best first, those without a distance last."""
    ranking, example = sweep.ranking, sweep.example
    axes, scores = charts.varied(sweep.points) or ["cfg-scale"], shown_scores(sweep)
    others = [i for i in range(len(sweep.points)) if i not in ranking.order]
    order = [*ranking.order, *others]
    rows = []
    for i in order:
        point, seconds = sweep.points[i], sweep.points[i].seconds
        kind = "tied" if i in ranking.tied else ""
        further = span(*ranking.differences[i]) if i in ranking.differences else ""
        if ranking.order and i == ranking.best:
            kind, further = "best", "best"
        cells = [
            _distance(point),
            Cell(further, "range", "tied" if kind == "tied" else ""),
            *(Cell(_number(point.value(name)), NUMBER) for name in scores),
            Cell(f"{point.evaluations:,}", NUMBER),
            Cell("–" if seconds is None else f"{seconds:,.1f}", NUMBER),
        ]
        rows.append(
            Row([*(Cell(value_text(axis, point.setting), NUMBER) for axis in axes), *cells], kind)
        )

    titles = [f"{title} {arrow(example.scores[name].direction)}" for name, title in scores.items()]
    distance, further = f"{example.first.name} ↓", "further than the best, 95%"
    return Table([*axes, distance, further, *titles, CALLS, "seconds"], rows)


def shown_scores(sweep: Sweep) -> dict[str, str]:
    """Return name -> title of the scores beside the distance.

    Of the first network these are all, without its name; of others only their distances.
    """
    first, *others = sweep.example.scores
    shown = {}
    for name in others:
        score = parse(name)
        is_first = score.network == parse(first).network
        if not score.convention if is_first else score.kind in ("FID", "FD"):
            shown[name] = score.kind if is_first else name
    return shown


def _distance(point: Point) -> Cell:
    small = span(*point.interval) if point.interval else ""
    known = point.first.value
    return Cell("not available" if known is None else number(known), "value", small, strong=True)


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def to_text(sweep: Sweep) -> str:
    """Return the first rows of the table and the findings, for a terminal."""
    table = points_table(sweep)
    distance = f"{sweep.example.first.name} ↓"
    shares = [f"{share} ↑" for share in SHARES]
    axes = table.columns[: list(table.columns).index(distance)]
    printed = table.select([*axes, distance, *shares, CALLS], most=PRINTED).to_text()
    hidden = len(sweep.points) - PRINTED
    more = [f"({hidden} more in sweep.md)"] if hidden > 0 else []
    notes = [f"Note: {text}" for text in warnings(sweep)]
    return "\n".join([printed, *more, "", *sentences(sweep), *notes])


def to_page(sweep: Sweep, drawn: Iterable[Section]) -> Page:
    protocol, lead = common_protocol(sweep.points), sentences(sweep)
    highlight = None
    if sweep.ranking.order:
        best, name = _distance(sweep.example), sweep.example.first.name
        small = f"{name} ↓, 95% {best.small}" if best.small else f"{name} ↓"
        what = describe(sweep.example.setting)
        highlight = Highlight("best setting", what, best.text, small, command(sweep))
        lead = lead[1:]
    return Page(
        sweep.title,
        software_subtitle(protocol.get("software", {})),
        essentials(sweep),
        [
            *drawn,
            Section("All settings", points_table(sweep), [ABOUT_TABLE]),
            Section("Protocol shared by all settings", protocol=protocol),
        ],
        "The same numbers for programs: sweep.json; the protocol of each setting: points/.",
        highlight,
        lead,
        warnings(sweep),
        generator=signature("sweep"),
    )


def essentials(sweep: Sweep) -> dict[str, str]:
    """Return what the numbers mean nothing without."""
    cfg, shared = sweep.cfg, common_protocol(sweep.points)
    networks = dict.fromkeys(parse(name).network for name in sweep.example.scores)
    real = sweep.real_vs_real.get(sweep.example.first.name)
    guiding = {"guide": cfg.guide, "classifier": cfg.classifier}
    return {
        "settings": f"{len(sweep.points):,}",
        "images of each": f"{cfg.num_samples:,} from seed {cfg.seed}",
        **{name: str(path) for name, path in guiding.items() if path},
        "features": ", ".join(networks),
        "reference": show(shared.get("reference", {}).get("source", UNKNOWN)),
        "real vs. real": _real_text(real) if real else UNKNOWN,
    }
