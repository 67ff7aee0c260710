"""The three files of a report."""

import dataclasses
import html.parser
import json
import math
import re

import pytest
import torch

from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.metrics.compute import Range, Score, score_names
from dit.evaluation.metrics.per_class import ClassRow, Recognition
from dit.report import evaluation_page as report
from dit.report import figures
from dit.utils import pictures

MISSING = "needs at least 20 images on both sides, has 3 samples and 1797 reference images"
HASH = "5bd1e995" * 8


def make(**more):
    """A report with a score that has all, one that is missing, and one with a deviation only."""
    scores = {
        "FD(digits-cnn)": Score("FD(digits-cnn)", 1.23456, "lower", 1000, 1797),
        "KID(digits-cnn)": Score("KID(digits-cnn)", None, "lower", 3, 1797, reason=MISSING),
        "IS(digits-cnn)": Score(
            "IS(digits-cnn)", 8.5, "higher", 1000, deviation=0.1, note="2 splits"
        ),
    }
    floor = {"FD(digits-cnn)": Range(0.52, 0.55, 0.61, 5, 898, 899)}
    protocol = {
        "sampling": {
            "sampler": "heun",
            "steps": 25,
            "cfg_scale": 1.5,
            "cfg_interval": [0.0, 1.0],
            "eta": None,
            "vae": "<script>alert(1)</script>",
            "classes": list(range(1000)),
        }
    }
    given = dict(
        title="Evaluation of runs/000",
        scores=scores,
        floor=floor,
        protocol=protocol,
        intervals={"FD(digits-cnn)": (1.1, 1.4)},
    )
    return report.Report(**{**given, **more})


def rich():
    """A report in which everything is, with names that try the page."""
    network = "a.very.long_module.name.of_a_feature:NetworkOfSomebody"
    names = [
        "FID",
        "sFID",
        "KID",
        "precision",
        "recall",
        "density",
        "coverage",
        "IS",
        "IS (torch-fidelity)",
    ]
    values = [3.9426, 6.1404, -0.00021, 0.8265, 0.5309, 1.12, 0.941, 215.837, 213.1]
    scores = {
        name: Score(
            name,
            value,
            "lower" if i < 3 else "higher",
            50_000,
            None if "IS" in name else 50_000,
            deviation=3.2 if "IS" in name else None,
            note="100 subsets of 1,000" if i == 2 else None,
        )
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    }
    scores["recall"] = Score(
        "recall", None, "higher", 50_000, reason="the reference has statistics only, no images"
    )
    scores[f"FD({network})"] = Score(
        f"FD({network})", 63.4, "lower", 50_000, 50_000, note="<b>bold & bare</b>"
    )
    floor = {
        "FID": Range(1.71, 1.74, 1.79, 5, 25_000, 25_000),
        "KID": Range(-1e-4, 0, 1e-4, 5, 25_000, 25_000),
        "precision": Range(0.73, 0.74, 0.75, 5, 25_000, 25_000),
        "IS": Range(210.2, 212, 214, 5, 25_000, 25_000),
    }
    classes = [
        ClassRow(
            f"n{i:08d} a long & <winding> name of class, such as ImageNet has, number {i}",
            50,
            1300,
            100 + (i * 37) % 91 * 2.0,
            90.0,
            (i * 13) % 100 / 100,
        )
        for i in range(100)
    ]
    limits = [
        report.Extrapolated(
            "FID", (5000, 10000, 20000, 35000, 50000), (8.1, 5.9, 4.8, 4.2, 3.94), 3.4, 0.08
        ),
        report.Extrapolated(f"FD({network})", reason="needs 1,000 samples"),
    ]
    protocol = {
        "samples": {
            "source": "/data/" + "long/" * 20 + "folder",
            "count": 50_000,
            "size": "256x256",
            "labels": "1000 classes, 50 images each",
            "pixels_sha256": HASH,
        },
        "sampling": {
            "sampler": "dpmpp_2m",
            "steps": 25,
            "cfg_scale": 1.5,
            "cfg_interval": [0.2, 0.8],
            "cfg_channels": 3,
            "ema": 0.9999,
            "classes": list(range(1000)),
            "weights_sha256": HASH,
        },
        "reference": {"source": "VIRTUAL_imagenet256_labeled.npz", "count": 10_000, "sha256": HASH},
        "features (inception-v3-compat)": {
            "weights": "weights-inception-2015-12-05-6726825d.pth",
            "weights_sha256": HASH,
        },
        f"features ({network})": {"weights": "unknown", "preprocessing": "<i>none</i> & nothing"},
        "software": {
            "date": "2026-11-20T10:11:12+00:00",
            "device": "NVIDIA H200",
            "dit": "0.2.0",
            "torch": "2.15.0",
        },
    }
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8)
    grid = pictures.grid(
        noise, ["cat", "a dog with a long name", "owl", "fox", "elk", "carp"], 10, 8
    )
    curve = figures.distance_by_size([report.Extrapolated("FID", (200, 100), (4.0, 5.0), 3.0, 0.1)])
    return make(
        title="Evaluation of runs/017-imagenet-256-DiT-XL-2/checkpoints/step-0400000 <not & a tag>",
        scores=scores,
        floor=floor,
        protocol=protocol,
        intervals={"FID": (3.88, 4.02), "precision": (0.82, 0.83)},
        digits=report.Digits(
            Recognition(0.985, {"0": 1.0, "1": 0.97}, 200), Recognition(0.99, {}, 1797)
        ),
        classes=classes,
        uncertainty=limits,
        memorisation=[
            report.Memorisation(0.012, 0.01, 10_000, "imagenet", 1_281_167, by)
            for by in ("pixels", "FD")
        ],
        figures={
            report.SAMPLES: {"The first samples of each class": grid},
            report.UNCERTAINTY: {"Distance by number of samples": figures.distance_by_size(limits)},
            report.MEMORISATION: {"Samples, and under each the nearest training image": grid},
            report.TRAINING: {"Training loss": curve},
            "Another <section>": {"Another figure": curve},
        },
        notes=["2,000 images for 2,048 features: the distance is biased upwards", "<b>no tag</b>"],
    )


class Page(html.parser.HTMLParser):
    """Collects attributes that fetch something, text, and checks that tags close."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_text(whole):
    """What the page says, with single spaces."""
    return " ".join(Page(report.to_html(whole)).text.split())


def test_three_files_are_written(tmp_path):
    paths = report.write_report(make(), tmp_path / "new")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


# -- report.json


def test_json_is_strict_and_says_why_a_score_is_missing(tmp_path):
    def never(constant):
        raise AssertionError(f"{constant} in JSON")

    text = report.write_report(make(), tmp_path)[0].read_text()
    values = json.loads(text, parse_constant=never)
    assert values["format"] == report.FORMAT
    assert values["scores"]["FD(digits-cnn)"] == {
        "value": 1.23456,
        "better": "lower",
        "samples": 1000,
        "reference": 1797,
        "deviation": None,
        "reason": None,
        "note": None,
        "interval": [1.1, 1.4],
        "floor": {
            "low": 0.52,
            "mean": 0.55,
            "high": 0.61,
            "splits": 5,
            "samples": 898,
            "reference": 899,
        },
    }
    kid = values["scores"]["KID(digits-cnn)"]
    assert (kid["value"], kid["reason"], kid["interval"], kid["floor"]) == (
        None,
        MISSING,
        None,
        None,
    )
    assert values["protocol"]["sampling"]["cfg_scale"] == 1.5


def test_json_holds_everything_but_pictures():
    whole = rich()
    values = json.loads(json.dumps(report.to_json(whole), allow_nan=False))
    assert set(values) == {
        "format",
        "title",
        "scores",
        "digits_recognised",
        "classes",
        "uncertainty",
        "memorisation",
        "protocol",
        "notes",
    }
    assert list(values["scores"]) == list(whole.scores)
    assert values["classes"][3] == dataclasses.asdict(whole.classes[3])
    assert values["uncertainty"][0]["sizes"] == [5000, 10000, 20000, 35000, 50000]
    assert values["memorisation"][0]["share"] == 0.012
    assert values["digits_recognised"]["found"]["per_class"] == {"0": 1.0, "1": 0.97}
    assert values["notes"] == list(whole.notes)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_never_written(tmp_path, bad):
    whole = make(scores={"FD": Score("FD", bad, "lower", 10)})
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_report(whole, tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- report.html


@pytest.mark.parametrize(
    "whole",
    [make(), rich(), make(scores={}, floor={}, protocol={}, intervals={})],
    ids=["small", "rich", "empty"],
)
def test_page_is_self_contained_and_well_formed(whole):
    text = report.to_html(whole)
    page = Page(text)
    assert page.open == []
    assert {link[:22] for link in page.links} <= {"data:image/png;base64,"}
    assert not re.search(r"https?://|@import|url\(", text)
    assert "script" not in page.tags
    assert len(page.links) == sum(len(pictures) for pictures in whole.figures.values())


def test_page_can_be_heard_and_reached_by_keyboard():
    text = report.to_html(rich())
    assert not re.search(r"<th[^>]*>\s*</th>", text)
    boxes = re.findall(r'<div class="card" ([^>]*)>\s*<table', text)
    assert len(boxes) == text.count("<table") == 3
    assert all('tabindex="0" role="region"' in box for box in boxes)
    labels = re.findall(r'aria-labelledby="([^"]*)"', text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert set(labels) == set(ids)
    assert len(set(ids)) == len(ids)


def test_page_says_what_the_limits_deviation_is():
    assert "the noise of the samples is not in it" in page_text(rich())


def test_page_shows_markup_as_text():
    assert "<script>alert(1)</script>" in page_text(make())
    text = page_text(rich())
    for name in (
        "<b>bold & bare</b>",
        "<not & a tag>",
        "<winding>",
        "<i>none</i> & nothing",
        "Another <section>",
    ):
        assert name in text


def test_page_shows_values_reasons_floor_and_protocol():
    text = page_text(make())
    for wanted in (
        "1.235 1.10 – 1.40",
        "0.520 – 0.610 (N = 898, 5 splits)",
        "1,000 / 1,797",
        "8.500 ± 0.10",
        f"not available: {MISSING}",
        "heun",
        "cfg_interval",
        "1000 values, 0 … 999",
    ):
        assert wanted in text
    assert "nan" not in text.lower()
    assert "FID" not in text


def test_page_says_what_counts_first():
    text = page_text(rich())
    head = text[: text.index("Scores")]
    for wanted in (
        "50,000 images of 256x256",
        "dpmpp_2m, 25 steps",
        "CFG scale 1.5, times 0.2 to 0.8, 3 channels",
        "VIRTUAL_imagenet256_labeled.npz, 10,000 images",
        "2,000 images for 2,048 features",
    ):
        assert wanted in head


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        ({"cfg_scale": 1.0, "cfg_interval": [0, 1], "cfg_channels": "all"}, "none"),
        (
            {"cfg_scale": 1.5, "cfg_interval": [0, 0.5], "cfg_channels": 3},
            "CFG scale 1.5, times 0 to 0.5, 3 channels",
        ),
        (
            {"cfg_scale": 1.5, "guide": "DiT-Ti/4 at step 9"},
            "autoguidance scale 1.5 from DiT-Ti/4 at step 9",
        ),
        (
            {"cfg_scale": 1.0, "classifier": "Classifier-Ti/4 at step 9", "classifier_scale": 2.0},
            "classifier scale 2 by Classifier-Ti/4 at step 9",
        ),
        (
            {"cfg_scale": 2.0, "classifier": "Classifier-Ti/4 at step 9", "classifier_scale": 0.5},
            "CFG scale 2, classifier scale 0.5 by Classifier-Ti/4 at step 9",
        ),
        ({}, "unknown"),
    ],
)
def test_every_guidance_is_told(sampling, told):
    assert report.essentials(make(protocol={"sampling": sampling}))["guidance"] == told


def test_scores_are_drawn_and_described():
    text = report.to_html(make())
    assert (
        'aria-label="FD(digits-cnn): 1.235, from 1.10 – 1.40; real against real 0.520 – 0.610'
        in text
    )
    row = report.rows(make())[0].axis
    assert row.ends == ("0", "1.5")  # a little above the highest mark, 1.4
    assert 0 < row.floor[0] < row.floor[1] < row.interval[0] < row.value < row.interval[1] < 100


@pytest.mark.parametrize(
    ("value", "better", "ends"),
    [
        (0.8, "higher", ("0", "1")),
        (1.2, "higher", ("0", "1.3")),
        (0.0, "lower", ("0", "1")),
        (-0.02, "lower", ("-0.02", "0.001")),
        (215.8, "higher", ("0", "227")),
    ],
)
def test_axes_hold_their_marks(value, better, ends):
    axis = report.rows(make(scores={"x": Score("x", value, better, 10)}))[0].axis
    assert axis.ends == ends
    assert 0 <= axis.value <= 100


def test_scores_stand_by_network():
    parts = report.groups(rich())
    assert [(network, len(rows)) for network, rows in parts] == [
        ("", 1),
        ("inception-v3-compat", 9),
        ("a.very.long_module.name.of_a_feature:NetworkOfSomebody", 1),
    ]
    mixed = {name: Score(name, 1.0, "lower", 10) for name in ("FID", "FD(b)", "KID", "KID(b)")}
    assert [row.name for row in report.rows(make(scores=mixed))] == [
        "FID",
        "KID",
        "FD(b)",
        "KID(b)",
    ]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("FID", ("FID", "inception-v3-compat", "")),
        ("IS (torch-fidelity)", ("IS", "inception-v3-compat", "torch-fidelity")),
        ("FD(digits-cnn)", ("FD", "digits-cnn", "")),
        ("sFD(a.b:C)", ("sFD", "a.b:C", "")),
        ("IS(digits-cnn) (torch-fidelity)", ("IS", "digits-cnn", "torch-fidelity")),
    ],
)
def test_scores_are_told_by_their_names(name, parts):
    assert report.parse(name) == parts


@pytest.mark.parametrize("extractor", [INCEPTION, "a.b:C"])
def test_every_score_has_a_kind(extractor):
    parsed = [report.parse(name) for name in score_names(extractor)]
    assert {one.network for one in parsed} == {extractor}
    assert {one.kind for one in parsed} <= set(report.KINDS)
    assert len(set(parsed)) == len(parsed)


# -- classes, limits, near-copies


def test_few_classes_are_all_shown_worst_first():
    rows = [
        ClassRow("a", 5, 9, fd=1.0),
        ClassRow("b", 5, 9, fd=3.0),
        ClassRow("c", 1, 9),
        ClassRow("d", 5, 9, fd=3.0, accuracy=0.5),
    ]
    table = report.class_table(rows)
    assert [row.label for row in table.worst] == ["d", "b", "a", "c"]
    assert (table.best, table.left_out) == ([], 0)
    assert "| d | 5 / 9 | 50.0% | 3.000 | – |" in report.to_markdown(make(classes=rows))


def test_many_classes_are_the_worst_and_the_best():
    rows = [ClassRow(str(i), 5, accuracy=i / 100) for i in range(100)]
    table = report.class_table(rows)
    assert [row.label for row in table.worst] == [str(i) for i in range(10)]
    assert [row.label for row in table.best] == [str(i) for i in range(90, 100)]
    assert "80 more between the 10 worst and the 10 best: in report.json" in page_text(
        make(classes=rows)
    )
    assert "… 80 more in report.json …" in report.to_markdown(make(classes=rows))


def test_limits_and_copies_are_told_in_words():
    for text in (page_text(rich()), report.to_markdown(rich())):
        assert "8.100 at 5,000; 5.900 at 10,000" in text
        assert "3.400 ± 0.080" in text
        assert "not available: needs 1,000 samples" in text
        assert (
            "By pixels: 1.2% of 10,000 samples are near-copies of one of 1,281,167 images of imagenet"
            in text
        )


# -- report.md, terminal, text


def test_markdown_has_every_score_and_escapes():
    whole = make()
    whole.protocol["sampling"]["data"] = "a|b"
    text = report.to_markdown(whole)
    assert (
        "| FD(digits-cnn) ↓ | **1.235** | 1.10 – 1.40 | 0.520 – 0.610 (N = 898, 5 splits) | 1,000 / 1,797 |"
        in text
    )
    assert f"| KID(digits-cnn) ↓ | not available |  | – | 3 / 1,797 | {MISSING} |" in text
    assert "a\\|b" in text
    assert "<script" not in text


def test_terminal_table_is_aligned():
    first, fd, kid, _ = report.to_text(make()).splitlines()
    assert first.index("real") == fd.index("0.520")
    assert fd.startswith("FD(digits-cnn)   1.235 (1.10 – 1.40)")
    assert kid == f"KID(digits-cnn)  not available: {MISSING}"


def test_recognition_heads_the_table():
    found = Recognition(0.985, {"0": 1.0, "1": 0.97}, 200)
    whole = make(digits=report.Digits(found, Recognition(0.99, {}, 1797)))
    assert report.rows(whole)[0].value == "98.50%"
    assert "98.50%" in page_text(whole)
    assert "| digits recognised ↑ | **98.50%** |" in report.to_markdown(whole)


def test_recognition_without_labels_says_why():
    whole = make(digits=report.Digits(reason="the samples have no labels"))
    assert "not available: the samples have no labels" in page_text(whole)
    assert report.to_json(whole)["digits_recognised"]["found"] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5678, "1,235"),
        (215.837, "215.8"),
        (3.9426, "3.943"),
        (0.00123456, "0.001235"),
        (-0.00002, "-2e-05"),
        (0.0, "0"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert report.number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.52, 0.61, "0.520 – 0.610"),
        (3.1, 3.9, "3.10 – 3.90"),
        (1234.0, 1310.0, "1,234 – 1,310"),
        (2.0, 2.0, "2.000"),
        (-1e-4, 1e-4, "-0.00010 – 0.00010"),
        (1e-9, 3e-9, "1e-09 – 3e-09"),
    ],
)
def test_ranges_are_as_exact_as_they_are_narrow(low, high, text):
    assert report.span(low, high) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "yes"),
        (0.1 + 0.2, "0.3"),
        ([1, 2.5], "1, 2.5"),
        ({"a": 1}, "a 1"),
        (50000, "50000"),
    ],
)
def test_protocol_entries_are_readable(value, text):
    assert report.show(value) == text
