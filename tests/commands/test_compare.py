"""When two reports are comparable, and what is printed when they are not."""

import copy
import json

import numpy as np
import pytest
import torch
from helpers.reports import make, rich

from dit import cli
from dit.commands import compare
from dit.commands.compare import UNKNOWN
from dit.config import CompareConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.images import from_array
from dit.evaluation.metrics.compute import Score
from dit.evaluation.protocol import build_protocol
from dit.evaluation.references import Reference
from dit.report import evaluation_page as report
from dit.report.protocol_entries import ASIDE, ASIDE_ENTRIES, MEASURED, NEEDED, SAMPLED

HASH, OTHER = "5b" * 32, "6c" * 32
CNN, INCEPTION = "features (digits-cnn)", "features (inception-v3-compat)"
OF_INCEPTION = {"FID", "sFID", "KID", "precision", "density", "IS", "IS (torch-fidelity)"}
OF_CNN = {"FD(digits-cnn)", "KID(digits-cnn)", "recall(digits-cnn)"}
EVERY = OF_INCEPTION | OF_CNN
REAL = EVERY - {"IS", "IS (torch-fidelity)"}  # those that have a reference
KIDS, SHARES = {"KID", "KID(digits-cnn)"}, {"precision", "density", "recall(digits-cnn)"}
PROTOCOL = {
    "samples": {
        "source": "runs/a",
        "count": 50_000,
        "size": "32x32",
        "labels": "10 classes, 5000 images each",
        "pixels_sha256": HASH,
    },
    "sampling": {
        "sampler": "ddim",
        "steps": 25,
        "cfg_scale": 1.5,
        "cfg_interval": [0.0, 1.0],
        "weights_sha256": HASH,
        "eta": None,
        "network": {"model": "DiT-S/2", "num_classes": 10},
        "classes": [*range(10)],
        "format": "png",
    },
    "reference": {
        "source": "digits",
        "count": 1797,
        "size": "32x32",
        "crop": "none",
        "statistics": "computed",
        "sha256": HASH,
    },
    CNN: {"weights": "cnn.safetensors", "weights_sha256": HASH, "preprocessing": "gray"},
    INCEPTION: {"weights": "inception.pth", "weights_sha256": HASH, "preprocessing": "bilinear"},
    "scores": {
        "KID": "100 subsets of 1000 images, or of half the smaller set",
        "neighbours (precision, recall)": 3,
        "neighbours (density, coverage)": 5,
        "IS": "splits of 5000 images in order",
        "reference images (precision, recall, density, coverage)": "at most 10000",
        "IS (torch-fidelity)": "10 splits, shuffled",
        "subset seed": 2020,
        "bootstrap resamples": 1000,
    },
    "software": {"date": "2026-11-20", "device": "CPU", "torch": "2.15.0"},
}


def written(**changes):
    """A report in JSON; changes are `section__entry=value`, or `scores`, by name."""
    scores = changes.pop("scores", dict.fromkeys(sorted(EVERY), 1.0))
    record = copy.deepcopy(PROTOCOL)
    for path, value in changes.items():
        section, entry = path.split("__", 1)
        record.setdefault(section, {})[entry] = value
    given = make(
        scores={n: Score(n, v, "lower" if "D" in n else "higher", 10) for n, v in scores.items()},
        protocol=record,
        real_vs_real={},
        intervals={},
    )
    return json.loads(json.dumps(report.to_json(given)))


def without(*sections, **changes):
    given = written(**changes)
    for section in sections:
        del given["protocol"][section]
    return given


def kinds(found):
    return [difference.kind for difference in found.differences]


def test_a_report_is_comparable_with_itself():
    found = compare.differences(written(), written())
    assert found.comparable
    assert found.differences == ()
    assert compare.to_text(found).startswith("comparable\n\nscore")


# -- entry by entry --------------------------------------------------------------------------------

FALLS = "samples count: A 50,000, B 10,000 – a Fréchet distance falls"
CHANGES = [
    ("samples__count", 10_000, MEASURED, FALLS, EVERY),
    ("samples__labels", "1 to 9", MEASURED, "samples labels: A 10 classes, 5000", EVERY),
    ("samples__source", "runs/b", ASIDE, "samples source", None),
    ("samples__new", 1, UNKNOWN, "samples new: B 1, unknown in A: can't tell – scores may", EVERY),
    ("reference__sha256", OTHER, MEASURED, "reference sha256: A 5b5b5b5b5b5b…, B 6c6c", REAL),
    ("reference__new", 1, UNKNOWN, "reference new: B 1, unknown in A: can't tell", REAL),
    # of the same content
    ("reference__statistics", "from the file", ASIDE, "reference statistics", None),
    ("reference__crop", "ADM's, to 32x32", ASIDE, "reference crop", None),
    (f"{CNN}__weights_sha256", OTHER, MEASURED, f"{CNN} weights (SHA-256): A 5b5b", OF_CNN),
    (f"{CNN}__weights", "other.pth", ASIDE, f"{CNN} weights", None),
    (f"{INCEPTION}__preprocessing", "none", MEASURED, f"{INCEPTION} pre", OF_INCEPTION),
    (f"{CNN}__widths", [64, 0, 0], UNKNOWN, f"{CNN} widths: B 64, 0, 0, unknown in A", OF_CNN),
    ("scores__KID", "50 subsets", MEASURED, "KID: A 100 subsets of 1000", KIDS),
    (
        "scores__neighbours (precision, recall)",
        5,
        MEASURED,
        "neighbours (precision, recall): A 3, B 5",
        {"precision", "recall(digits-cnn)"},
    ),
    ("scores__neighbours (density, coverage)", 3, MEASURED, "neighbours (density", {"density"}),
    ("scores__IS", "1 split", MEASURED, "IS: A splits of 5000 images in order, B 1 split", {"IS"}),
    ("scores__IS (torch-fidelity)", "1", MEASURED, "IS (torch-fid", {"IS (torch-fidelity)"}),
    (
        "scores__subset seed",
        1,
        MEASURED,
        "subset seed: A 2020, B 1",
        KIDS | SHARES | {"IS (torch-fidelity)"},
    ),
    ("scores__bootstrap resamples", 0, ASIDE, "bootstrap resamples", None),
    ("scores__size of FID", 1, UNKNOWN, "size of FID: B 1, unknown in A", {"FID"}),
    ("sampling__classes", [0, 1], MEASURED, "classes: A 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, B 0", EVERY),
    ("sampling__sampler", "heun", SAMPLED, "sampler: A ddim, B heun", None),
    ("sampling__cfg_interval", [0.2, 0.8], SAMPLED, "cfg interval: A 0, 1, B 0.2, 0.8", None),
    ("sampling__eta", 1.0, SAMPLED, "eta: A none, B 1", None),
    ("sampling__network", {"model": "B", "num_classes": 10}, SAMPLED, "network model: A D", None),
    ("sampling__sampler", UNKNOWN, SAMPLED, "sampler: A ddim, unknown in B: can't tell", None),
    ("sampling__new", "thing", SAMPLED, "new: B thing, unknown in A: can't tell", None),
    ("sampling__guide", "DiT-Ti/4", SAMPLED, "guide: A none, B DiT-Ti/4", None),
    ("sampling__prompts", ["a 7"], MEASURED, "prompts: A none, B a 7 – other prompts", EVERY),
    ("sampling__trained_size", 16, SAMPLED, "trained size: A that of the samples, B 16", None),
    ("software__torch", "2.16.0", ASIDE, "torch", None),
    ("new section__entry", 5, UNKNOWN, "new section entry: B 5, unknown in A", EVERY),
]


@pytest.mark.parametrize(
    ("path", "value", "kind", "words", "scores"), CHANGES, ids=[f"{c[0]}={c[1]}" for c in CHANGES]
)
def test_a_changed_entry_has_its_kind_and_scores(path, value, kind, words, scores):
    found = compare.differences(written(), written(**{path: value}))
    (difference,) = found.differences
    assert difference.kind == kind
    assert str(difference).startswith(words)
    assert found.comparable == (kind in (SAMPLED, ASIDE))
    touched = {p.name for p in found.scores if p.incompatible_because or p.unsure_because}
    assert touched == (scores or set())
    assert words.split(":")[0] in compare.to_text(found)


@pytest.mark.parametrize("entry", ["count", "size", "crop", "statistics"])
def test_entries_of_the_reference_matter_where_its_content_differs(entry):
    changed = written(**{f"reference__{entry}": "other", "reference__sha256": OTHER})
    found = compare.differences(written(), changed)
    assert kinds(found) == [MEASURED, MEASURED]
    if entry == "statistics":
        assert set(found.differences[0].scores) == {"FID", "sFID", "FD(digits-cnn)"}


@pytest.mark.parametrize(
    ("a", "b", "sides"), [(UNKNOWN, "x", "A"), ("x", UNKNOWN, "B"), (UNKNOWN, UNKNOWN, "A and B")]
)
def test_unknown_is_neither_equal_nor_different(a, b, sides):
    found = compare.differences(written(samples__labels=a), written(samples__labels=b))
    assert kinds(found) == [UNKNOWN]
    assert not found.comparable
    text = compare.to_text(found)
    assert text.startswith("can't tell: 1 entry of the protocol unknown")
    assert f"unknown in {sides}: can't tell – balanced labels" in text
    assert "labels.csv" in text  # where labels come from


def test_unknown_entries_do_not_matter_where_the_content_is_the_same():
    given = written(reference__count=UNKNOWN, reference__size=UNKNOWN)
    assert compare.differences(given, given).comparable


@pytest.mark.parametrize("nothing", [UNKNOWN, ""])
def test_unknown_content_is_not_the_same(nothing):
    a, b = written(reference__sha256=nothing), written(reference__sha256=nothing)
    b["protocol"]["reference"]["crop"] = "x"
    assert sorted(kinds(compare.differences(a, b))) == [MEASURED, UNKNOWN]


def test_how_a_missing_score_is_measured_does_not_matter():
    scores = {**dict.fromkeys(EVERY, 1.0), "density": None}
    changed = written(scores=scores, **{"scores__neighbours (density, coverage)": 3})
    found = compare.differences(written(), changed)
    assert kinds(found) == [ASIDE]
    assert found.comparable
    assert "not available in B" in compare.to_text(found)


def test_a_network_of_one_report_does_not_matter():
    fewer = without(CNN, scores=dict.fromkeys(OF_INCEPTION, 1.0))
    found = compare.differences(written(), fewer)
    assert {*kinds(found)} == {ASIDE}
    assert found.comparable
    assert f"Without influence as a rule: {CNN} weights" in compare.to_text(found)


# -- absent entries --------------------------------------------------------------------------------

MISSING = {
    "samples": EVERY,
    "reference": REAL,
    CNN: OF_CNN,
    INCEPTION: OF_INCEPTION,
    "scores": KIDS | SHARES | {"IS", "IS (torch-fidelity)"},
    "sampling": set(),
    "software": set(),
}


@pytest.mark.parametrize(
    ("a", "b"), [(True, True), (True, False), (False, True)], ids=["both", "a", "b"]
)
@pytest.mark.parametrize("section", MISSING)
def test_a_missing_section_is_unknown(section, a, b):
    sides = (without(section) if missing else written() for missing in (a, b))
    found = compare.differences(*sides)
    assert {pair.name for pair in found.scores if pair.unsure_because} == MISSING[section]
    assert not any(pair.incompatible_because for pair in found.scores)
    assert found.comparable == (not MISSING[section])


@pytest.mark.parametrize("path", NEEDED)
def test_a_needed_entry_that_both_lack_is_unknown(path):
    section, entry = path.split("/", 1)
    given = written(reference__sha256=UNKNOWN) if section == "reference" else written()
    del given["protocol"][CNN if section == "features" else section][entry]
    found = compare.differences(given, given)
    if path == "sampling/classes":  # then the label balance counts the classes
        assert found.comparable
    else:
        assert {*kinds(found)} == {UNKNOWN}
        assert any(difference.path.endswith(entry) for difference in found.differences)


def test_only_scores_in_common_need_entries():
    """The Inception score has no reference, and needs no network but Inception's."""
    a = without("reference", CNN, scores={"IS": 1.0})
    assert compare.differences(a, a).comparable
    b = written(scores={"IS": 1.0}, reference__sha256=OTHER)
    assert compare.differences(a, b).comparable


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ([0, 1], [2, 3], MEASURED),
        ([0, 1], UNKNOWN, UNKNOWN),
        ([*range(10)], UNKNOWN, ASIDE),  # all classes; label balance says that B has as many
        (UNKNOWN, UNKNOWN, None),
    ],
)
def test_classes_matter_under_one_label_balance(a, b, kind):
    found = compare.differences(written(sampling__classes=a), written(sampling__classes=b))
    assert kinds(found) == ([kind] if kind else [])
    assert found.comparable == (kind in (None, ASIDE))


TEN = [f"a {i}" for i in range(10)]


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ({"prompts": ["a 7", "a 3"]}, {"prompts": ["a 7", "a 1"]}, MEASURED),
        ({"prompts": ["a 7", "a 3"]}, {"prompts": ["a 3", "a 7"]}, ASIDE),
        ({"prompts": TEN}, {}, ASIDE),  # a caption for each class
        # of two in ten classes it is unknown which captions they have
        ({"prompts": TEN[:2], "classes": [0, 1]}, {"classes": [0, 1]}, MEASURED),
        # samples of others, of all classes
        ({"prompts": TEN}, {"classes": UNKNOWN, "sampler": UNKNOWN}, ASIDE),
        ({}, {"sampler": UNKNOWN}, None),
    ],
)
def test_prompts_matter_as_classes_do(a, b, kind):
    sides = ({f"sampling__{name}": value for name, value in side.items()} for side in (a, b))
    found = compare.differences(*(written(**side) for side in sides))
    of_prompts = [d.kind for d in found.differences if d.words == "prompts"]
    assert of_prompts == ([kind] if kind else [])
    assert found.comparable == (kind != MEASURED)


def test_absent_entries_of_older_reports_have_their_old_meaning():
    old = {"model": "DiT-S/2", "num_classes": 10}
    new = {**old, "conditioning": "adaln-zero", "text_width": None, "unet_attention": None}
    new["time_scale"] = 1.0
    a = written(sampling__network=old, sampling__negative_prompt="")
    assert compare.differences(a, written(sampling__network=new)).differences == ()
    text = written(sampling__network={**new, "conditioning": "text", "text_width": 64})
    found = compare.differences(a, text)
    assert [(d.words, d.a, d.b) for d in found.differences] == [
        ("network conditioning", "adaln-zero", "text"),
        ("network text width", None, 64),
    ]


def test_nothing_in_common_is_not_comparable():
    a, b = written(scores={"FID": 1.0}), written(scores={"FD(digits-cnn)": 1.0, "FID": None})
    found = compare.differences(a, b)
    assert not found.comparable
    assert compare.verdict(found) == "not comparable: no score in both"


def test_networks_without_a_score_in_common_have_no_influence():
    a = without(INCEPTION, scores={"FD(digits-cnn)": 1.0})
    b = without(CNN, scores={"FID": 1.0})
    found = compare.differences(a, b)
    text = compare.to_text(found)

    assert {*kinds(found)} == {ASIDE}
    assert "Not known" not in text
    aside = next(line for line in text.splitlines() if line.startswith("Without influence"))
    assert f"{CNN} preprocessing" in aside
    assert f"{INCEPTION} preprocessing" in aside


def test_digits_recognised_are_compared_too():
    a, b = (json.loads(json.dumps(report.to_json(rich()))) for _ in range(2))
    b["digits_recognised"]["found"]["accuracy"] = 0.5
    assert "digits recognised ↑" in compare.to_text(compare.differences(a, b))
    b["protocol"]["samples"]["count"] = 10
    reasons = {pair.name: pair.incompatible_because for pair in compare.differences(a, b).scores}
    assert reasons["digits recognised"] == ()
    assert reasons["FID"] == ("samples count",)


def test_entries_are_those_that_an_evaluation_writes():
    """An entry that no report has is a misspelt one; a report lacks none that is needed."""
    images = from_array(np.zeros((4, 8, 8, 3), dtype=np.uint8), "folder", ["a", "a", "b", "b"])
    cpu = torch.device("cpu")
    networks = [
        Extractor(lambda pixels: None, name, "file", HASH, "none", cpu, (4, 0, 0))
        for name in ("digits-cnn", "inception-v3-compat")
    ]
    record = build_protocol(images, HASH, {}, Reference("real", images, None), HASH, networks, cpu)
    names = {f"{s.split(' (')[0]}/{entry}" for s, entries in record.items() for entry in entries}
    of_samples_json = {"sampling/classes", "sampling/format", "sampling/num_samples"}
    assert {*NEEDED, *ASIDE_ENTRIES} - names == of_samples_json

    given = written()
    given["protocol"] = json.loads(json.dumps(record))
    found = compare.differences(given, given)
    assert (found.differences, found.comparable) == ((), True)


# -- the table -------------------------------------------------------------------------------------


def scored(value, interval=None, name="FID"):
    """A report with one score."""
    given = written(scores={name: value})
    given["scores"][name]["interval"] = interval
    return given


WIDE, NARROW = scored(2.0, [1.7, 2.3]), scored(1.0, [0.6, 1.4])


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (scored(2.0), scored(1.0), "B is better; uncertainty unknown"),
        (scored(2.0), scored(2.0), "equal"),
        (WIDE, NARROW, "B is better by more than the uncertainty (± 0.5000)"),
        (NARROW, WIDE, "A is better by more than the uncertainty (± 0.5000)"),
        (WIDE, scored(2.4, [2.0, 2.8]), "within the uncertainty (± 0.5000)"),
        # the wider half counts
        (scored(0.1, [0, 0.4]), scored(0.5, [0.1, 0.9]), "within the uncertainty (± 0.5000)"),
        (WIDE, scored(1.0), "B is better; uncertainty unknown"),
        (scored(2.0, name="IS"), scored(1.0, name="IS"), "A is better; uncertainty unknown"),
        (scored(None), scored(1.0), "not available in A"),
    ],
)
def test_differences_of_scores_in_words(a, b, text):
    assert compare.describe_change(compare.differences(a, b).scores[0]) == text


def test_table_shows_differences_of_comparable_scores_only():
    scores = {**dict.fromkeys(EVERY, 1.0), "FID": 1.25}
    other = written(scores=scores, **{"scores__neighbours (precision, recall)": 5})
    lines = compare.to_text(compare.differences(written(), other)).splitlines()
    row = {line.split()[0]: line.split() for line in lines if " ↓ " in line or " ↑ " in line}
    assert row["FID"][2:5] == ["1.000", "1.250", "+0.2500"]
    assert lines[0].endswith("(8 of the 10 scores in both not touched)")
    assert row["precision"][2:7] == ["1.000", "1.000", "–", "not", "comparable:"]


# -- the command -----------------------------------------------------------------------------------


def save(path, given):
    """A report.json in a folder of its own."""
    path.mkdir(exist_ok=True)
    (path / "report.json").write_text(given if isinstance(given, str) else json.dumps(given))
    return path


def test_comparable_reports_end_well(tmp_path, capsys):
    a, b = save(tmp_path / "a", written()), save(tmp_path / "b", written(sampling__steps=50))
    compare.compare(CompareConfig(a=a, b=b / "report.json"), Ranks(device=torch.device("cpu")))
    out = capsys.readouterr().out
    assert "\ncomparable\n" in out
    assert "  steps: A 25, B 50\n" in out


def test_exit_codes_of_the_command(tmp_path, capsys):
    a = save(tmp_path / "a", written())
    b = save(tmp_path / "b", written(samples__count=10_000, samples__size="8x8"))
    assert cli.main(["compare", str(a), str(a)]) == 0
    assert cli.main(["compare", str(a), str(tmp_path / "nowhere")]) == 2
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main(["compare", str(a), str(b)])
    assert "not comparable: 2 differences in measuring" in capsys.readouterr().out


BAD_SCORES = (
    "{}",
    '{"value": "x", "better": "lower", "interval": null}',
    '{"value": NaN, "better": "lower", "interval": null}',
    '{"value": 1.5, "better": "down", "interval": null}',
    '{"value": 1.5, "better": "lower"}',
    '{"value": 1.5, "better": "lower", "interval": [1]}',
    '{"value": 1.5, "better": "lower", "interval": [1, "x"]}',
)
DIGITS = '{"format": 2, "scores": {}, "protocol": {}, "digits_recognised": {"found": {"n": 5}}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is missing or damaged"),
        ("[1]", "is not a report"),
        ("{}", "is not a report"),
        ('{"format": 2, "scores": {"FID": 3}, "protocol": {}}', "is not a report"),
        ('{"format": 2, "scores": {}, "protocol": []}', "is not a report"),
        ('{"scores": {}, "protocol": {}}', "in format 1; expected format 2"),
        (DIGITS, "is missing or damaged"),
        *(
            (f'{{"format": 2, "scores": {{"FID": {bad}}}, "protocol": {{}}}}', "damaged")
            for bad in BAD_SCORES
        ),
    ],
)
def test_files_that_are_no_reports_are_refused(tmp_path, content, message):
    file = save(tmp_path / "a", content) / "report.json"
    with pytest.raises(UserError, match=f"a/report.json .*{message}"):
        compare.read_report(file)


def test_missing_files_are_refused(tmp_path):
    for path in (tmp_path / "x" / "report.json", tmp_path):
        with pytest.raises(UserError, match=r"there is no .*report.json; expected report.json of"):
            compare.read_report(path)
