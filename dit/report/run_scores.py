"""The scores that lie in a run: of evaluate.py, and of --eval-every during training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from dit.errors import UserError
from dit.evaluation.metrics.compute import RealVsReal
from dit.report.evaluation_page import FORMAT, REPORT
from dit.report.page import Section
from dit.report.reference_curves import Line
from dit.report.run_curves import draw_scores
from dit.report.score_names import DISTANCES, KINDS, SHARES, parse
from dit.report.table import NOTHING, NUMBER, Cell, Row, Table
from dit.report.text import number, show
from dit.report.verdict import Copies, verdict
from dit.utils import pictures
from dit.utils.typed_json import read_json

FOLDER = "evaluation"  # in a run, of evaluate.py
SHOWN = ("precision", "recall", "coverage")  # beside the distance
MOST_STEPS = 10  # of scores during training
ABOUT_EVALUATIONS = (
    "The newest is first. Compare scores at equal numbers of samples and one reference only: "
    "dit compare checks two reports."
)
ABOUT_TRAINING = (
    "Scores of the EMA by --eval-every, the same seeds at every step. They rank the steps of this "
    "run, and no others."
)


class ReportedScore(TypedDict):
    """What is read of a score in report.json."""

    value: float | None
    floor: RealVsReal | None


class ReportedCopies(TypedDict):
    """What is read of near-copies in report.json."""

    share: float
    real_share: float


class Evaluation(TypedDict):
    """What is read of a report.json."""

    format: int
    scores: dict[str, ReportedScore]
    memorisation: list[ReportedCopies]
    protocol: dict[str, dict[str, Any]]


def read_evaluations(run: Path) -> tuple[dict[str, Evaluation], list[str]]:
    """Return the reports in RUN/evaluation by their folder, newest first, and which are unreadable.

    Reports of other formats, or damaged ones, are no reason to have no page.
    """
    found: dict[str, Evaluation] = {}
    unreadable: list[str] = []
    folder = run / FOLDER
    for file in sorted([folder / REPORT, *folder.glob(f"*/{REPORT}")]):
        if not file.is_file():
            continue
        name = str(file.parent.relative_to(run))
        try:
            report = read_json(file, Evaluation, "", "")
        except UserError:
            unreadable.append(name)
            continue
        if report["format"] == FORMAT:
            found[name] = report
        else:
            unreadable.append(name)
    newest = sorted(found, key=lambda name: _date(found[name]), reverse=True)
    return {name: found[name] for name in newest}, unreadable


def _date(report: Evaluation) -> str:
    return str(report["protocol"].get("software", {}).get("date", ""))


def newest_verdict(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the sentence about the newest evaluation, or "" without any."""
    for name, report in evaluations.items():
        scores = report["scores"]
        values = {score: entry["value"] for score, entry in scores.items()}
        floors = {score: entry["floor"] for score, entry in scores.items()}
        real = {score: floor for score, floor in floors.items() if floor}
        copies = [Copies(one["share"], one["real_share"]) for one in report["memorisation"]]
        step = report["protocol"].get("sampling", {}).get("step")
        where = f"{name}, step {step:,}" if isinstance(step, int) else name
        text = verdict(values, real, copies)
        return f"Newest evaluation ({where}). {text}" if text else ""
    return ""


def evaluations_section(evaluations: Mapping[str, Evaluation], unreadable: list[str]) -> Section:
    """Return a table with a row for each report."""
    paragraphs = [ABOUT_EVALUATIONS] if evaluations else []
    if unreadable:
        names = ", ".join(unreadable)
        paragraphs.append(f"Not shown, damaged or of another format: {names}.")
    if not evaluations:
        return Section("Evaluations", None, paragraphs)

    rows = []
    for name, report in evaluations.items():
        by_network: dict[str, dict[str, ReportedScore]] = {}
        for score, entry in report["scores"].items():
            kind, network, convention = parse(score)
            if kind in KINDS and not convention:
                by_network.setdefault(network, {})[kind] = entry
        rows += [_row(name, report, network, kinds) for network, kinds in by_network.items()]
    facts = ("step", "samples", "guidance", "date")
    columns = ("report", "features", "distance", *SHOWN, *facts)
    table = Table(columns, rows).without_empty_columns()
    return Section("Evaluations", table, paragraphs)


def _row(name: str, report: Evaluation, network: str, kinds: Mapping[str, ReportedScore]) -> Row:
    """Return the scores of a report in features of one network."""
    protocol = report["protocol"]
    sampling, samples = protocol.get("sampling", {}), protocol.get("samples", {})
    facts = (sampling.get("step"), samples.get("count"), sampling.get("cfg_scale"))
    kind = next((kind for kind in ("FID", "FD") if kind in kinds), "")
    cells = [Cell(name, "name"), Cell(network), _score_cell(kind, kinds.get(kind))]
    cells += [_score_cell(kind, kinds.get(kind)) for kind in SHOWN]
    cells += [Cell(_known(fact), NUMBER) for fact in facts]
    return Row([*cells, Cell(_date(report)[:10], NUMBER)])


def _known(value: Any) -> str:
    if value is None or isinstance(value, str):
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else show(value)


def _score_cell(kind: str, score: ReportedScore | None) -> Cell:
    """Return a share in percent, or a distance with its kind beside what real images score."""
    if score is None or score["value"] is None:
        return Cell(NOTHING, NUMBER)
    if kind in SHARES:
        return Cell(f"{score['value']:.1%}", NUMBER)
    floor = score["floor"]
    real = f"real: {number(floor.mean)}" if floor else ""
    return Cell(f"{kind} {number(score['value'])}", NUMBER, real)


# -- during training -------------------------------------------------------------------------------


def training_section(lines: Sequence[Line]) -> Section:
    """Return curve and table of the scores in a log, the lowest distance marked."""
    chart = draw_scores(lines)
    measured = [line for line in lines if "eval" in line]
    alike = [line for line in measured if line["eval"] == measured[-1]["eval"]]
    names = [name for name in (alike[-1] if alike else {}) if parse(name).kind in KINDS]
    if chart is None or not names:
        return Section("Scores during training")

    distance = next((name for name in names if parse(name).kind in DISTANCES), "")
    lowest = min((line[distance] for line in alike if distance in line), default=None)
    # spread from the end, so that the last is among them
    shown = pictures.spread(alike[::-1], MOST_STEPS)[::-1]
    rows = [_step_row(line, names, distance, lowest) for line in shown]
    table = Table(("step", *_short(names)), rows).without_empty_columns()
    return Section("Scores during training", table, [ABOUT_TRAINING], {"Scores of the EMA": chart})


def _short(names: Sequence[str]) -> list[str]:
    """Return names without their network if all are of one; distances keep it: FD is not FID."""
    if len({parse(name).network for name in names}) > 1:
        return [*names]
    kinds = [parse(name).kind for name in names]
    return [name if kind in DISTANCES else kind for name, kind in zip(names, kinds, strict=True)]


def _step_row(line: Line, names: Sequence[str], distance: str, lowest: float | None) -> Row:
    cells = [Cell(f"{line['step']:,}", NUMBER)]
    for name in names:
        if name not in line:
            cells.append(Cell(NOTHING, NUMBER))
            continue
        is_best = name == distance and line[name] == lowest
        text = f"{line[name]:.1%}" if parse(name).kind in SHARES else number(line[name])
        cells.append(Cell(text, NUMBER, "lowest" if is_best else ""))
    return Row(cells)
