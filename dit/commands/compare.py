"""The command `dit compare`: whether the scores of two reports are comparable, and what they say.

It is the difference of two protocols, entry by entry; `entry_kinds` says what each entry means.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from dit.config import CompareConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.protocol import UNKNOWN
from dit.report.evaluation_page import FORMAT, RECOGNISED
from dit.report.protocol_entries import (
    ABSENT,
    ASIDE,
    MEASURED,
    SAMPLED,
    depends,
    kind_of,
    needed_entries,
)
from dit.report.score_names import parse
from dit.report.table import NUMBER, Cell, Row, Table
from dit.report.text import arrow, counted, number, show
from dit.utils.typed_json import read_json

Entries = dict[str, Any]  # by path: SECTION/ENTRY
Score = Mapping[str, Any]  # a `ReportedScore`, or empty where a report has none


class ReportedScore(TypedDict):
    """What is read of a score in report.json."""

    value: float | None
    better: Literal["lower", "higher"]
    interval: tuple[float, float] | None


class AnyReport(TypedDict):
    """What reports of all formats have."""

    scores: dict[str, dict[str, Any]]
    protocol: dict[str, dict[str, Any]]


class Versioned(AnyReport, total=False):
    """A report with its format; the first had none."""

    format: int


class Recognised(TypedDict):
    """The share of digits that a classifier recognises in the samples."""

    accuracy: float


class Digits(TypedDict):
    """What is read of the digits that were recognised; only some evaluations look for them."""

    found: Recognised | None


class Scores(TypedDict):
    """The scores of a report in this format."""

    scores: dict[str, ReportedScore]
    protocol: dict[str, dict[str, Any]]


class Report(Scores, total=False):
    """What is read of a report.json."""

    digits_recognised: Digits | None


@dataclass(frozen=True)
class Difference:
    """An entry of the protocol that differs between two reports, or that one does not know.

    Args:
        kind: `measured` makes `scores` incompatible, `unknown` perhaps; `sampled` is what the
            comparison is about; `aside` does not matter as a rule.
    """

    path: str
    a: Any
    b: Any
    kind: str
    why: str = ""
    scores: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        section, _, entry = self.path.partition("/")
        name = entry.replace("_sha256", " (SHA-256)").replace("_", " ")
        return name if section in ("sampling", "software", "scores") else f"{section} {name}"

    def __str__(self) -> str:
        parts = []
        unknown = []
        for side, value in (("A", self.a), ("B", self.b)):
            if value == UNKNOWN:
                unknown.append(side)
            else:
                parts.append(f"{side} {_show(value)}")
        if unknown:
            parts.append(f"unknown in {' and '.join(unknown)}: can't tell")
        why = f" – {self.why}" if self.why else ""
        return f"{self.words}: {', '.join(parts)}{why}"


@dataclass(frozen=True)
class ScorePair:
    """A score in both reports.

    Args:
        ci95: half the 95% interval of the difference; None where it is unknown.
        incompatible_because: entries of the protocol that were measured differently.
        unsure_because: entries that are unknown.
    """

    name: str
    direction: str
    a: float | None
    b: float | None
    ci95: float | None
    incompatible_because: tuple[str, ...]
    unsure_because: tuple[str, ...]

    @property
    def is_common(self) -> bool:
        return self.a is not None and self.b is not None


@dataclass(frozen=True)
class Comparison:
    """The differences between two reports, and their scores side by side."""

    differences: tuple[Difference, ...]
    scores: tuple[ScorePair, ...]

    def of(self, kind: str) -> list[Difference]:
        return [difference for difference in self.differences if difference.kind == kind]

    @property
    def comparable(self) -> bool:
        """Whether reports have a score in common and all is known to be measured alike."""
        common = any(pair.is_common for pair in self.scores)
        return common and not self.of(MEASURED) and not self.of(UNKNOWN)


def compare(cfg: CompareConfig, ranks: Ranks) -> None:
    """Print whether two reports are comparable, why not, and their scores.

    Raises:
        UserError: a file that is missing, damaged, no report, or of another version.
        SystemExit: with code 1, not comparable, or an entry that matters is unknown.
    """
    comparison = differences(read_report(cfg.a), read_report(cfg.b))
    if ranks.main:
        print(f"A  {cfg.a}\nB  {cfg.b}\n\n{to_text(comparison)}")
    if not comparison.comparable:
        raise SystemExit(1)


def read_report(path: Path) -> Report:
    """Return the content of a report.json, or of that in a folder, after checking it."""
    file = path / "report.json" if path.is_dir() else path
    expected, do = "report.json of an evaluation, or its folder", "write one with evaluate.py"
    if not file.is_file():
        raise UserError(f"there is no {file}", expected, do)

    # first the format: reports of others have other entries
    version = read_json(file, Versioned, expected, do).get("format", 1)
    if version != FORMAT:
        given = f"{file} is a report in format {version}"
        raise UserError(given, f"format {FORMAT}", "evaluate again, both with this version")
    return read_json(file, Report, expected, do)


# -- differences -----------------------------------------------------------------------------------


def differences(a: Report, b: Report) -> Comparison:
    """Compare two reports as report.json has them."""
    scores_a = _scores(a)
    scores_b = _scores(b)
    names = [*dict.fromkeys([*scores_a, *scores_b])]
    common = [name for name in names if _is_known(name, scores_a) and _is_known(name, scores_b)]
    different = tuple(_differences(_entries(a), _entries(b), names, common))

    pairs = []
    for name in names:
        score_a: Score = scores_a.get(name, {})
        score_b: Score = scores_b.get(name, {})
        pairs.append(_pair(name, score_a, score_b, different))
    return Comparison(different, tuple(pairs))


def _scores(report: Report) -> dict[str, Score]:
    """Return scores by name, the share of digits recognised among them."""
    scores: dict[str, Score] = {**report["scores"]}
    digits = report.get("digits_recognised")
    if not digits or not digits["found"]:
        return scores
    accuracy = digits["found"]["accuracy"]
    recognised = {"value": accuracy, "better": "higher", "interval": None}
    return {RECOGNISED: recognised, **scores}


def _is_known(name: str, scores: Mapping[str, Score]) -> bool:
    return scores.get(name, {}).get("value") is not None


def _entries(report: Report) -> Entries:
    """Return the protocol by path; entries of a dict have paths of their own, empty ones none."""
    flat: Entries = {}
    for section, entries in report["protocol"].items():
        for name, value in entries.items():
            path = f"{section}/{name}"
            if isinstance(value, dict) and value:
                flat |= {f"{path} {key}": inner for key, inner in value.items()}
            else:
                flat[path] = value
    return {path: value for path, value in flat.items() if value != ""}


def _differences(
    a: Entries, b: Entries, names: Sequence[str], common: Sequence[str]
) -> Iterator[Difference]:
    """Compare entry by entry, those that scores in common need but no report has among them."""
    networks = {parse(name).network for name in common if name != RECOGNISED}
    excused = _excused(a, b) | _of_lone_networks(a, b, networks)
    scores = common or names

    for path in dict.fromkeys([*a, *b, *needed_entries(networks)]):
        value_a = _value(a, path)
        value_b = _value(b, path)
        yield from _compare_entry(path, value_a, value_b, scores, path in excused)


def _of_lone_networks(a: Entries, b: Entries, networks: set[str]) -> set[str]:
    """Return entries of networks in one report alone, other than `networks`."""
    needed = {f"features ({network})" for network in networks}
    in_one = {_section(path) for path in a} ^ {_section(path) for path in b}
    lone = {section for section in in_one - needed if section.startswith("features (")}
    return {path for path in (*a, *b) if _section(path) in lone}


def _section(path: str) -> str:
    return path.partition("/")[0]


def _value(entries: Entries, path: str) -> Any:
    """Return an entry, or what its absence means."""
    # samples of others record no sampler: of them nothing is known by absence
    names_sampler = entries.get("sampling/sampler", UNKNOWN) != UNKNOWN
    absent = ABSENT.get(path, UNKNOWN) if names_sampler else UNKNOWN
    return entries.get(path, absent)


def _compare_entry(
    path: str, a: Any, b: Any, scores: Sequence[str], excused: bool
) -> Iterator[Difference]:
    kind, depending, why = kind_of(path)
    touched = tuple(name for name in scores if depends(name, path, depending))
    # a difference that touches no score in common is worth a mention, no more
    if kind == MEASURED and (excused or not touched):
        kind = ASIDE
    if kind == MEASURED and UNKNOWN in (a, b):
        yield Difference(path, a, b, UNKNOWN, why, touched)
    elif a != b and kind == MEASURED:
        yield Difference(path, a, b, MEASURED, why, touched)
    elif a != b:
        yield Difference(path, a, b, kind, why)


def _excused(a: Entries, b: Entries) -> set[str]:
    """Return entries that do not matter, as other entries imply that they mean the same."""
    excused = set()
    content = a.get("reference/sha256", UNKNOWN)
    if content == b.get("reference/sha256") != UNKNOWN:
        excused |= {f"reference/{name}" for name in ("count", "size", "crop", "statistics")}
    classes = [side.get("sampling/classes", UNKNOWN) for side in (a, b)]
    # the label balance, which must be equal too, says that the other has as many classes
    if UNKNOWN in classes and _has_all_classes(a) and _has_all_classes(b):
        excused.add("sampling/classes")
    if _same_prompts(a, b):
        excused.add("sampling/prompts")
    return excused


def _same_prompts(a: Entries, b: Entries) -> bool:
    """Return whether two sets of images have the same prompts in any order.

    All classes of one, as many as the other has prompts, are the same too: label balance counts
    both.
    """
    prompts = [side.get("sampling/prompts") for side in (a, b)]
    given = [sorted(some) for some in prompts if isinstance(some, list)]
    if len(given) != 1:
        return not given or given[0] == given[1]
    without = a if isinstance(prompts[1], list) else b
    classes = without.get("sampling/classes", UNKNOWN)
    as_many = [*range(len(given[0]))]
    return _has_all_classes(without) and classes in (UNKNOWN, as_many)


def _has_all_classes(entries: Entries) -> bool:
    """Return whether no class is known to be missing; samples of others record no classes."""
    classes = entries.get("sampling/classes", UNKNOWN)
    if classes == UNKNOWN:
        return True
    count = entries.get("sampling/network num_classes")
    return isinstance(classes, list) and len(classes) == count


def _pair(name: str, a: Score, b: Score, different: Iterable[Difference]) -> ScorePair:
    touching = [difference for difference in different if name in difference.scores]
    widths = [_half_width(score) for score in (a, b)]
    known = [width for width in widths if width is not None]
    return ScorePair(
        name,
        (a or b)["better"],
        a.get("value"),
        b.get("value"),
        math.hypot(*known) if len(known) == 2 else None,
        tuple(difference.words for difference in touching if difference.kind == MEASURED),
        tuple(difference.words for difference in touching if difference.kind == UNKNOWN),
    )


def _half_width(score: Score) -> float | None:
    """Return the wider half of a score's interval, which ends at 0 for distances near it."""
    interval, value = score.get("interval"), score.get("value")
    if interval is None or value is None:
        return None
    return max(interval[1] - value, value - interval[0])


# -- text ------------------------------------------------------------------------------------------


def to_text(comparison: Comparison) -> str:
    """Return the verdict, the differences in groups, and the table of scores."""
    groups = {
        "Measured differently – such scores cannot be compared:": comparison.of(MEASURED),
        "Not known – the scores may have been measured differently:": comparison.of(UNKNOWN),
        "Sampled differently or unknown – what the comparison is about:": comparison.of(SAMPLED),
    }
    parts = [verdict(comparison)]
    for title, group in groups.items():
        if group:
            parts.append("\n  ".join([title, *map(str, group)]))
    if aside := dict.fromkeys(difference.words for difference in comparison.of(ASIDE)):
        parts.append(f"Without influence as a rule: {', '.join(aside)}")
    parts.append(scores_table(comparison.scores).to_text())
    return "\n\n".join(parts)


def verdict(comparison: Comparison) -> str:
    measured = comparison.of(MEASURED)
    unknown = comparison.of(UNKNOWN)
    common = [pair for pair in comparison.scores if pair.is_common]
    if measured:
        count = sum(not pair.incompatible_because for pair in common)
        but = f" ({count} of the {len(common)} scores in both not touched)" if count else ""
        return f"not comparable: {counted(len(measured), 'difference')} in measuring{but}"
    if not common:
        return "not comparable: no score in both"
    if unknown:
        return f"can't tell: {counted(len(unknown), 'entry', 'entries')} of the protocol unknown"
    return "comparable"


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    text = show(value)
    is_hash = len(text) == 64 and " " not in text
    return f"{text[:12]}…" if is_hash else text


def scores_table(scores: Iterable[ScorePair]) -> Table:
    rows = []
    for pair in scores:
        change = "–"
        if pair.a is not None and pair.b is not None and not pair.incompatible_because:
            sign = "+" if pair.b > pair.a else ""
            change = sign + number(pair.b - pair.a)
        values = ["–" if value is None else number(value) for value in (pair.a, pair.b)]
        numbers = [Cell(text, NUMBER) for text in (*values, change)]
        name = Cell(f"{pair.name} {arrow(pair.direction)}")
        words = Cell(describe_change(pair))
        rows.append(Row([name, *numbers, words]))
    return Table(("score", "A", "B", "B - A", ""), rows)


def describe_change(pair: ScorePair) -> str:
    """Return what the difference of a score says."""
    if pair.a is None or pair.b is None:
        sides = [side for side, value in (("A", pair.a), ("B", pair.b)) if value is None]
        return f"not available in {' and '.join(sides)}"
    if pair.incompatible_because:
        return f"not comparable: {', '.join(pair.incompatible_because)}"

    change = pair.b - pair.a
    better = "B" if (change < 0) == (pair.direction == "lower") else "A"
    if change == 0:
        text = "equal"
    elif pair.ci95 is None:
        text = f"{better} is better; uncertainty unknown"
    elif abs(change) > pair.ci95:
        text = f"{better} is better by more than the uncertainty (± {number(pair.ci95)})"
    else:
        text = f"within the uncertainty (± {number(pair.ci95)})"
    unsure = ", ".join(pair.unsure_because)
    return f"{text}; can't tell: {unsure} unknown" if unsure else text
