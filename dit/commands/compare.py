"""Whether the scores of two reports may be compared, and what they say if so."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.config import CompareConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.protocol import UNKNOWN
from dit.report.evaluation_page import FORMAT, arrow, number, parse, show
from dit.utils.files import reraise_as_user_error

MEASURED, SAMPLED, ASIDE = "measured", "sampled", "aside"  # and UNKNOWN: what a difference is about
RECOGNISED = "digits recognised"
FRECHET = ("FID", "sFID", "FD", "sFD")
NEIGHBOURS = ("precision", "recall", "density", "coverage")
SHUFFLED = "IS (torch-fidelity)"
OF_REFERENCE = (*FRECHET, "KID", *NEIGHBOURS)
OF_FEATURES = (*OF_REFERENCE, "IS", SHUFFLED)
SHORT_HASH = 12


@dataclass(frozen=True)
class Rule:
    """What an entry of the protocol is called, which kind of difference it makes, and why it matters.

    Args:
        touches: scores without their networks; all where empty.
        do: what helps where it is unknown.
        absent: what it means that a report that tells of sampling does not tell this, or leaves it empty.
    """

    words: str
    kind: str
    why: str = ""
    touches: tuple[str, ...] = ()
    do: str = ""
    absent: Any = UNKNOWN


DEFINITION = "another definition of the score"
RULES = {
    "samples/count": Rule(
        "number of samples", MEASURED, "a Fréchet distance falls as samples are added", OF_FEATURES
    ),
    "samples/labels": Rule(
        "label balance",
        MEASURED,
        "balanced labels score better than labels drawn at random",
        do="evaluate samples with labels: labels.csv, class folders, or arr_1 of an .npz",
    ),
    "samples/size": Rule(
        "image size", MEASURED, "a network sees other features in images of another size"
    ),
    "samples/source": Rule("source of the samples", ASIDE),
    "samples/pixels_sha256": Rule("pixels of the samples", ASIDE),
    "reference/source": Rule("name of the reference", ASIDE),
    "reference/count": Rule(
        "number of reference images",
        MEASURED,
        "a Fréchet distance falls as images are added",
        OF_REFERENCE,
    ),
    "reference/size": Rule(
        "size of the reference images", MEASURED, "resizing changes features", OF_REFERENCE
    ),
    "reference/crop": Rule(
        "crop of the reference", MEASURED, "another crop or filter moves every score", OF_REFERENCE
    ),
    "reference/statistics": Rule(
        "statistics of the reference",
        MEASURED,
        "those of a file may come from other images, another crop or another network",
        FRECHET,
    ),
    "reference/sha256": Rule(
        "content of the reference", MEASURED, "other images, other scores", OF_REFERENCE
    ),
    "features/weights": Rule("file of the feature network", ASIDE),
    "features/weights_sha256": Rule(
        "weights of the feature network", MEASURED, "other weights are another measure"
    ),
    "features/preprocessing": Rule(
        "preprocessing", MEASURED, "how one resizes changes features by percents"
    ),
    "scores/KID": Rule("KID", MEASURED, DEFINITION, ("KID",)),
    "scores/neighbours (precision, recall)": Rule(
        "neighbours (precision, recall)", MEASURED, DEFINITION, NEIGHBOURS[:2]
    ),
    "scores/neighbours (density, coverage)": Rule(
        "neighbours (density, coverage)", MEASURED, DEFINITION, NEIGHBOURS[2:]
    ),
    "scores/reference images (precision, recall, density, coverage)": Rule(
        "reference images of neighbours", MEASURED, DEFINITION, NEIGHBOURS
    ),
    "scores/IS": Rule("IS", MEASURED, DEFINITION, ("IS",)),
    "scores/IS (torch-fidelity)": Rule(SHUFFLED, MEASURED, DEFINITION, (SHUFFLED,)),
    "scores/subset seed": Rule(
        "seed of subsets",
        MEASURED,
        "other subsets score a little differently",
        ("KID", *NEIGHBOURS, SHUFFLED),
    ),
    "scores/bootstrap resamples": Rule("resamples of the bootstrap", ASIDE),
    "sampling/classes": Rule("classes", MEASURED, "other classes are another distribution"),
    "sampling/prompts": Rule(
        "prompts", MEASURED, "other prompts are another distribution", absent="none"
    ),
    "sampling/negative_prompt": Rule("negative prompt", SAMPLED, absent="none"),
    "sampling/text_encoder": Rule("text encoder", SAMPLED, absent="none"),
    "sampling/text_encoder_sha256": Rule("weights of the text encoder", SAMPLED, absent="none"),
    "sampling/network conditioning": Rule("network conditioning", SAMPLED, absent="adaln-zero"),
    "sampling/network text_width": Rule("network text width", SAMPLED, absent=None),
    "sampling/network unet_attention": Rule("network unet attention", SAMPLED, absent=None),
    "sampling/cfg_scale": Rule("CFG scale", SAMPLED),
    "sampling/cfg_interval": Rule("CFG interval", SAMPLED),
    "sampling/cfg_channels": Rule("CFG channels", SAMPLED),
    "sampling/guide": Rule("guide", SAMPLED, absent="none"),
    "sampling/guide_sha256": Rule("weights of the guide", SAMPLED, absent="none"),
    "sampling/classifier": Rule("classifier", SAMPLED, absent="none"),
    "sampling/classifier_sha256": Rule("weights of the classifier", SAMPLED, absent="none"),
    "sampling/classifier_scale": Rule("classifier scale", SAMPLED, absent="none"),
    "sampling/block_cache": Rule("network calls that share middle blocks", SAMPLED, absent="none"),
    "sampling/trained_size": Rule("image size of training", SAMPLED, absent="that of the samples"),
    "sampling/ema": Rule("EMA", SAMPLED),
    "sampling/vae": Rule("autoencoder", SAMPLED),
    "sampling/vae_sha256": Rule("weights of the autoencoder", SAMPLED),
    "sampling/weights": Rule("file of the weights", SAMPLED),
    "sampling/weights_sha256": Rule("weights", SAMPLED),
    "sampling/data": Rule("training data", SAMPLED),
    "sampling/format": Rule("format of the samples", ASIDE),
    "sampling/num_samples": Rule("samples in the folder", ASIDE),
}
"""By section/entry; reports must have those of the kind `measured`, unless absence means something.
Entries that are not here are of the kind of their
section."""
KINDS = {"sampling": SAMPLED, "software": ASIDE}
Entries = dict[tuple[str, str], Any]  # by section and name
CLASSES, PROMPTS = ("sampling", "classes"), ("sampling", "prompts")
OF_CONTENT = ("reference/count", "reference/size", "reference/crop", "reference/statistics")
"""Of no matter where the content of the reference is the same."""


@dataclass(frozen=True)
class Difference:
    """An entry of the protocol that is not the same in both reports, or not known in one.

    Args:
        kind: `measured` spoils the comparison of `scores`; `unknown` might; `sampled` is what it is about; `aside`
            does not matter as a rule.
    """

    words: str
    a: Any
    b: Any
    kind: str
    why: str
    scores: tuple[str, ...]

    @property
    def unsure(self) -> bool:
        """Whether the two may be the same after all."""
        return UNKNOWN in (self.a, self.b)


@dataclass(frozen=True)
class Line:
    """A score in both reports.

    Args:
        reach: by how much the two may differ by chance, with 95% confidence; None where it is not known.
        spoilt: differences for which the two can not be compared, and `unsure`: for which nobody knows.
    """

    name: str
    better: str
    a: float | None
    b: float | None
    reach: float | None
    spoilt: tuple[str, ...]
    unsure: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What two reports differ in, and their scores side by side."""

    differences: tuple[Difference, ...]
    scores: tuple[Line, ...]

    def of(self, kind: str) -> list[Difference]:
        """The differences of one kind."""
        return [difference for difference in self.differences if difference.kind == kind]

    @property
    def comparable(self) -> bool:
        """Whether there is a score in both and all is known to have been measured in the same way."""
        common = any(line.a is not None and line.b is not None for line in self.scores)
        return common and not self.of(MEASURED) and not self.of(UNKNOWN)


def compare(cfg: CompareConfig, ranks: Ranks) -> None:
    """Print whether two reports are comparable, why not, and their scores; exit code 1 unless they are.

    They are not, too, where an entry that matters is unknown.

    Raises:
        UserError: a file that is missing, damaged, no report, or of another version.
        SystemExit: with code 1, not comparable, or nobody can tell.
    """
    found = differences(read_report(cfg.a), read_report(cfg.b))
    if ranks.main:
        print(f"A  {cfg.a}\nB  {cfg.b}\n\n{to_text(found)}")
    if not found.comparable:
        raise SystemExit(1)


def read_report(path: Path) -> dict[str, Any]:
    """A report.json, or that of a folder.

    Raises:
        UserError: missing, damaged, no report, or of another version.
    """
    file = path / "report.json" if path.is_dir() else path
    expected, do = "report.json of an evaluation, or its folder", "write one with evaluate.py"
    if not file.is_file():
        raise UserError(f"there is no {file}", expected, do)
    with reraise_as_user_error(file, expected, do):
        values = json.loads(file.read_text(encoding="utf-8"))
    if not (
        isinstance(values, dict)
        and _of_dicts(values.get("scores"))
        and _of_dicts(values.get("protocol"))
    ):
        raise UserError(f"{file} is not a report", expected, do)
    if values.get("format", 1) != FORMAT:
        raise UserError(
            f"{file} is a report in format {values.get('format', 1)}",
            f"format {FORMAT}",
            "evaluate again, both with this version",
        )
    with reraise_as_user_error(file, expected, do):
        for name, score in _scores(values).items():
            _check_score(name, score)
    return values


def _of_dicts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())


def _check_score(name: str, score: dict[str, Any]) -> None:
    low, high = score["interval"] or (None, None)
    known = [value for value in (score["value"], low, high) if value is not None]
    if score["better"] not in ("lower", "higher") or not all(map(math.isfinite, known)):
        raise ValueError(f"score {name}: {score}")


# -- what differs --------------------------------------------------------------------------------------------------


def differences(a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    """Compare two reports as `report.to_json` makes them."""
    scores_a, scores_b = _scores(a), _scores(b)
    names = tuple(dict.fromkeys([*scores_a, *scores_b]))
    common = tuple(
        n for n in names if all(s.get(n, {}).get("value") is not None for s in (scores_a, scores_b))
    )
    networks = {parse(name).network for name in common if name != RECOGNISED}
    found = tuple(_differences(_entries(a), _entries(b), common or names, networks))
    lines = (_line(name, scores_a.get(name), scores_b.get(name), found) for name in names)
    return Comparison(found, tuple(lines))


def _scores(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, the digits recognised among them."""
    found = (report.get("digits_recognised") or {}).get("found")
    head = (
        {RECOGNISED: {"value": found["accuracy"], "better": "higher", "interval": None}}
        if found
        else {}
    )
    return {**head, **report["scores"]}


def _entries(report: dict[str, Any]) -> Entries:
    """Protocol entries by section and name; of an entry that is a dict, each of its own. What is empty is absent."""
    flat = {}
    for section, entries in report["protocol"].items():
        for name, value in entries.items():
            inner = (
                {f"{name} {key}": v for key, v in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
            flat.update(
                {
                    (section, key): rule_of(section, key).absent if v == "" else v
                    for key, v in inner.items()
                }
            )
    return flat


def _differences(
    a: Entries, b: Entries, names: tuple[str, ...], networks: set[str]
) -> Iterable[Difference]:
    """Entry by entry, those that are needed but nowhere among them; sections of other networks as a whole."""
    needed = _needed(sorted(networks))
    only = {section for section, _ in a}.symmetric_difference(section for section, _ in b)
    alone = {section for section in only if section.startswith("features (")} - {
        section for section, _ in needed
    }
    for section in sorted(alone):
        in_a, in_b = (
            "recorded" if any(key[0] == section for key in side) else "not recorded"
            for side in (a, b)
        )
        yield Difference(section, in_a, in_b, ASIDE, "", ())
    excused = _excused(a, b)
    for key in dict.fromkeys([*a, *b, *needed]):
        if key[0] not in alone:
            yield from _difference(key, _entry(a, key), _entry(b, key), names, excused)


def _entry(entries: Entries, key: tuple[str, str]) -> Any:
    """What a report says of an entry, or means by saying nothing."""
    tells = entries.get(("sampling", "sampler"), UNKNOWN) != UNKNOWN
    return entries.get(key, rule_of(*key).absent if tells else UNKNOWN)


def _needed(networks: Iterable[str]) -> list[tuple[str, str]]:
    """Entries without which nobody knows how a score was measured."""
    paths = [
        path.split("/", 1)
        for path, rule in RULES.items()
        if rule.kind == MEASURED and rule.absent == UNKNOWN
    ]
    sections = {"features": [f"features ({network})" for network in networks]}
    return [(section, entry) for start, entry in paths for section in sections.get(start, [start])]


def _excused(a: Entries, b: Entries) -> set[str]:
    """Entries that spoil nothing: what the content of the reference implies, classes that can only be all, and prompts
    that ask for the same."""
    content = ("reference", "sha256")
    same_content = a.get(content, UNKNOWN) == b.get(content) != UNKNOWN
    unrecorded = UNKNOWN in (a.get(CLASSES, UNKNOWN), b.get(CLASSES, UNKNOWN))
    excused = set(OF_CONTENT) if same_content else set()
    excused |= {"/".join(CLASSES)} if unrecorded and _all_classes(a) and _all_classes(b) else set()
    return excused | {"/".join(PROMPTS)} if _same_prompts(a, b) else excused


def _same_prompts(a: Entries, b: Entries) -> bool:
    """Whether two sets of images were asked for by the same prompts, in whatever order, or one by all classes, as many
    as the other has prompts. Their label balance counts both."""
    prompts = [side[PROMPTS] for side in (a, b) if isinstance(side.get(PROMPTS), list)]
    if len(prompts) != 1:
        return not prompts or sorted(prompts[0]) == sorted(prompts[1])
    plain = b if isinstance(a.get(PROMPTS), list) else a
    classes = plain.get(CLASSES, UNKNOWN)
    return _all_classes(plain) and classes in (UNKNOWN, [*range(len(prompts[0]))])


def _all_classes(entries: Entries) -> bool:
    """Whether no class is known to be left out. Other people's samples record none; their label balance counts them."""
    classes = entries.get(CLASSES, UNKNOWN)
    every = entries.get(("sampling", "network num_classes"))
    return classes == UNKNOWN or (isinstance(classes, list) and len(classes) == every)


def _difference(
    key: tuple[str, str], a: Any, b: Any, names: tuple[str, ...], excused: set[str]
) -> Iterable[Difference]:
    rule = rule_of(*key)
    scores = tuple(name for name in names if _touches(rule, key[0], name))
    spoils = rule.kind == MEASURED and bool(scores) and _path(*key) not in excused
    if UNKNOWN in (a, b) and spoils:
        yield Difference(
            rule.words, a, b, UNKNOWN, "; ".join(filter(None, (rule.why, rule.do))), scores
        )
    elif a != b:
        yield Difference(
            rule.words,
            a,
            b,
            ASIDE if rule.kind == MEASURED and not spoils else rule.kind,
            rule.why,
            scores,
        )


def rule_of(section: str, entry: str) -> Rule:
    """How to judge an entry of the protocol, also one that is not known here."""
    of_network = section.startswith("features (")
    kind, plain = KINDS.get(section, MEASURED), entry.replace("_", " ")
    words = plain if of_network or section in (*KINDS, "scores") else f"{section}: {plain}"
    why = {"scores": DEFINITION}.get(section, "scores may depend on it")
    touches = {"reference": OF_REFERENCE, "scores": _named(entry)}.get(section, ())
    rule = RULES.get(
        _path(section, entry), Rule(words, kind, why if kind == MEASURED else "", touches)
    )
    if of_network:
        return dataclasses.replace(rule, words=f"{rule.words} {section.removeprefix('features ')}")
    return rule


def _path(section: str, entry: str) -> str:
    return f"{section.split(' (')[0]}/{entry}"


def _touches(rule: Rule, section: str, score: str) -> bool:
    if section.startswith("features ("):
        return score != RECOGNISED and section == f"features ({parse(score).network})"
    return not rule.touches or base(score) in rule.touches


def _named(entry: str) -> tuple[str, ...]:
    """The scores that an entry speaks of, all that come from features where it names none."""
    return (
        tuple(name for name in OF_FEATURES if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", entry))
        or OF_FEATURES
    )


def base(score: str) -> str:
    """A score's name without its network."""
    name = parse(score)
    return f"{name.kind} ({name.convention})" if name.convention else name.kind


def _line(
    name: str, a: dict[str, Any] | None, b: dict[str, Any] | None, found: Iterable[Difference]
) -> Line:
    one, other = a or {}, b or {}
    touching = [difference for difference in found if name in difference.scores]
    reaches = [_reach(score) for score in (one, other)]
    return Line(
        name=name,
        better=(a or b or {})["better"],
        a=one.get("value"),
        b=other.get("value"),
        reach=None if None in reaches else math.hypot(*reaches),  # type: ignore[arg-type]
        spoilt=tuple(difference.words for difference in touching if difference.kind == MEASURED),
        unsure=tuple(difference.words for difference in touching if difference.kind == UNKNOWN),
    )


def _reach(score: dict[str, Any]) -> float | None:
    """Half the width of a score's interval, the wider half, as a distance is never below 0."""
    interval, value = score.get("interval"), score.get("value")
    return (
        None if interval is None or value is None else max(interval[1] - value, value - interval[0])
    )


# -- in words ------------------------------------------------------------------------------------------------------


def to_text(found: Comparison) -> str:
    """The verdict, the differences in their groups, and the table of scores."""
    sampled = found.of(SAMPLED)
    groups = {
        "Measured differently – such scores can not be compared:": found.of(MEASURED),
        "Not known – the scores may have been measured differently:": found.of(UNKNOWN),
        "Sampled differently – what the comparison is about:": [d for d in sampled if not d.unsure],
        "Not known – they may have been sampled differently:": [d for d in sampled if d.unsure],
    }
    parts = [verdict(found)]
    parts += [
        "\n".join([title, *(f"  {in_words(d)}" for d in group)])
        for title, group in groups.items()
        if group
    ]
    if aside := found.of(ASIDE):
        parts.append(
            "Without influence as a rule: " + ", ".join(dict.fromkeys(d.words for d in aside))
        )
    return "\n\n".join([*parts, table(found.scores)])


def verdict(found: Comparison) -> str:
    """One line."""
    measured, unknown = found.of(MEASURED), found.of(UNKNOWN)
    if measured:
        both = [line for line in found.scores if line.a is not None and line.b is not None]
        untouched = sum(not line.spoilt for line in both)
        but = f" ({untouched} of the {len(both)} scores in both not touched)" if untouched else ""
        return f"not comparable: {_counted(measured, 'difference')} in how they were measured{but}"
    if not any(line.a is not None and line.b is not None for line in found.scores):
        return "not comparable: no score in both"
    if unknown:
        return f"can't tell: {_counted(unknown, 'entry', 'entries')} of the protocol unknown"
    return "comparable"


def _counted(things: list[Difference], one: str, many: str | None = None) -> str:
    return f"{len(things)} {one if len(things) == 1 else many or one + 's'}"


def in_words(difference: Difference) -> str:
    """Like: number of samples: A 50,000, B 10,000 – a Fréchet distance falls as samples are added."""
    a, b = difference.a, difference.b
    sides = " and ".join(side for side, value in (("A", a), ("B", b)) if value == UNKNOWN)
    if difference.unsure:
        known = [
            f"{side} {_show(value)}" for side, value in (("A", a), ("B", b)) if value != UNKNOWN
        ]
        told = ", ".join([*known, f"unknown in {sides}: can't tell"])
    else:
        told = f"A {_show(a)}, B {_show(b)}"
    why = f" – {difference.why}" if difference.why else ""
    return f"{difference.words}: {told}{why}"


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    text = show(value)
    return f"{text[:SHORT_HASH]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text


def table(scores: Iterable[Line]) -> str:
    """Scores side by side: A, B, B - A, and what to make of it."""
    rows = [("score", "A", "B", "B - A", "")]
    rows += [
        (
            f"{line.name} {arrow(line.better)}",
            _number(line.a),
            _number(line.b),
            _change(line),
            judge(line),
        )
        for line in scores
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:4], widths[1:]), row[4])).rstrip()
        for row in rows
    )


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _change(line: Line) -> str:
    if line.a is None or line.b is None or line.spoilt:
        return "–"
    change = line.b - line.a
    return ("+" if change > 0 else "") + number(change)


def judge(line: Line) -> str:
    """What a difference of a score says."""
    if line.a is None or line.b is None:
        return "not available in " + " and ".join(
            side for side, v in (("A", line.a), ("B", line.b)) if v is None
        )
    if line.spoilt:
        return "not comparable: " + ", ".join(line.spoilt)
    change = line.b - line.a
    winner = "B" if (change < 0) == (line.better == "lower") else "A"
    if change == 0:
        told = "equal"
    elif line.reach is None:
        told = f"{winner} is better; uncertainty unknown"
    elif abs(change) > line.reach:
        told = f"{winner} is better by more than the uncertainty (± {number(line.reach)})"
    else:
        told = f"within the uncertainty (± {number(line.reach)})"
    return told + (f"; can't tell: {', '.join(line.unsure)} unknown" if line.unsure else "")
