"""The files of a report."""

import dataclasses
import html.parser
import json
import math
import re

import pytest
from helpers.reports import FD, MISSING, NETWORK, make, rich
from PIL import Image

from dit.evaluation.extractors.inception import INCEPTION
from dit.evaluation.metrics.compute import Score, score_names
from dit.evaluation.metrics.per_class import ClassRow, Recognition
from dit.report import evaluation_page as report
from dit.report.score_names import KINDS, parse
from dit.report.text import number, show, span

GRID = Image.new("RGB", (8, 8))


class Parsed(html.parser.HTMLParser):
    """A page's tags, fetched addresses and text; fails where tags do not close."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        fetching = ("src", "href", "srcset", "data", "action")
        self.links += [value for name, value in attrs if name in fetching]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def html_of(given):
    return report.to_page(given).to_html()


def markdown_of(given):
    return report.to_page(given).to_markdown()


def text_of(given):
    """The text of the page, with single spaces."""
    return " ".join(Parsed(html_of(given)).text.split())


# -- report.json -----------------------------------------------------------------------------------


def test_four_files_are_written_and_the_json_has_every_field_of_a_score(tmp_path):
    paths = report.write_report(make(grid=GRID), tmp_path / "new")
    assert [path.name for path in paths] == [
        *("report.json", "report.md", "report.html", "grid.png"),
    ]
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)

    values = json.loads(paths[0].read_text(), parse_constant=pytest.fail)
    assert values["format"] == 2
    real = {"low": 0.52, "mean": 0.55, "high": 0.61, "splits": 5, "samples": 898, "reference": 899}
    assert values["scores"][FD] == {
        "value": 1.23456,
        "better": "lower",
        "samples": 1000,
        "reference": 1797,
        "deviation": None,
        "reason": None,
        "note": None,
        "interval": [1.1, 1.4],
        "floor": real,
    }
    missing = {"value": None, "reason": MISSING, "interval": None, "floor": None}
    assert values["scores"]["KID(digits-cnn)"].items() >= missing.items()
    assert values["protocol"]["sampling"]["cfg_scale"] == 1.5


def test_json_holds_everything_but_figures():
    given = rich()
    values = json.loads(json.dumps(report.to_json(given), allow_nan=False))
    keys = "format title verdict scores digits_recognised classes uncertainty memorisation"
    assert [*values] == [*keys.split(), "protocol", "notes"]
    assert list(values["scores"]) == list(given.scores)
    assert values["classes"][3] == dataclasses.asdict(given.classes[3])
    assert values["uncertainty"][0] == {
        "name": "FID",
        **dataclasses.asdict(given.uncertainty["FID"]),
    }
    assert values["memorisation"][0]["share"] == 0.012
    digits = values["digits_recognised"]
    assert digits["found"]["per_class"] == {"0": 1.0, "1": 0.97}
    assert (digits["floor"]["count"], digits["reason"]) == (1797, None)
    assert values["notes"] == list(given.notes)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_never_written(tmp_path, bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_report(make(scores={"FD": Score("FD", bad, "lower", 10)}), tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- report.html -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [make(), rich(), make(scores={}, real_vs_real={}, protocol={}, intervals={})],
    ids=["small", "rich", "empty"],
)
def test_page_is_self_contained_and_well_formed(given):
    text = html_of(given)
    page = Parsed(text)
    assert page.open == []
    assert {link[:22] for link in page.links} <= {"data:image/png;base64,"}
    assert not re.search(r"https?://|@import|url\(", text)
    assert "script" not in page.tags
    assert len(page.links) == sum(len(pictures) for pictures in given.figures.values())


def test_page_is_accessible():
    text = html_of(rich())
    assert not re.search(r"<th[^>]*>\s*</th>", text)
    boxes = re.findall(r'<div class="card table[^"]*" ([^>]*)>\s*<table', text)
    assert len(boxes) == text.count("<table") == 3
    assert all('tabindex="0" role="region"' in box for box in boxes)
    ids = re.findall(r' id="([^"]*)"', text)
    assert set(re.findall(r'aria-labelledby="([^"]*)"', text)) == set(ids)
    assert len(set(ids)) == len(ids)
    axis = 'aria-label="FD(digits-cnn): 1.235 (1.10 – 1.40); real vs. real 0.520 – 0.610 (N'
    assert axis in html_of(make())


def test_page_shows_markup_as_text():
    assert "<script>alert(1)</script>" in text_of(make())
    text = text_of(rich())
    for name in ("<b>bold & bare</b>", "<not & a tag>", "<winding>", "<i>none</i> & nothing"):
        assert name in text
    assert "Another <section>" in text
    assert "<script" not in markdown_of(make())


def test_page_shows_values_reasons_and_protocol():
    text = text_of(make())
    for wanted in (
        "1.235 1.10 – 1.40",
        "0.520 – 0.610 N = 898, 5 splits",
        "1,000 / 1,797",
        "8.50 ± 0.10",
        f"Not available: KID(digits-cnn) ({MISSING}).",
        "distance of the samples to real images: quality and variety",
        "heun",
        "cfg_interval",
        "1000 values, 0 … 999",
    ):
        assert wanted in text
    assert "nan" not in text.lower()
    assert "FID" not in text
    assert "the noise of the samples is not in it" in text_of(rich())


def test_page_begins_with_what_numbers_mean_nothing_without():
    text = text_of(rich())
    head = text[: text.index("Scores")]
    for wanted in (
        "2026-11-20 10:11:12 UTC · dit 0.2.0 · NVIDIA H200",
        "50,000 images of 256x256",
        "dpmpp_2m, 25 steps",
        "CFG scale 1.5, times 0.2 to 0.8, 3 channels",
        "VIRTUAL_imagenet256_labeled.npz, 10,000 images",
        "2,000 images for 2,048 features",
    ):
        assert wanted in head


CLASSIFIER = {"classifier": "Classifier-Ti/4 at step 9", "classifier_scale": 2.0}


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"cfg_scale": 1.0, "cfg_interval": [0, 1], "cfg_channels": "all"}, "none"),
        (
            {"cfg_scale": 1.5, "cfg_interval": [0, 0.5], "cfg_channels": 3},
            "CFG scale 1.5, times 0 to 0.5, 3 channels",
        ),
        ({"cfg_scale": 1.5, "guide": "DiT-Ti/4"}, "autoguidance scale 1.5 from DiT-Ti/4"),
        ({"cfg_scale": 1.0, **CLASSIFIER}, "classifier scale 2 by Classifier-Ti/4 at step 9"),
        (
            {"cfg_scale": 2.0, **CLASSIFIER},
            "CFG scale 2, classifier scale 2 by Classifier-Ti/4 at step 9",
        ),
        ({}, "unknown"),
    ],
)
def test_guidance_in_words(sampling, text):
    assert report.essentials({"sampling": sampling}, {})["guidance"] == text


# -- the table of scores ---------------------------------------------------------------------------


def first_axis(given):
    return report.scores_table(given).rows[0].cells[1].axis


def test_marks_of_an_axis_are_in_order():
    axis = first_axis(make())
    assert axis.ends == ("0", "1.5")  # a little above the highest mark, 1.4
    assert 0 < axis.real[0] < axis.real[1] < axis.interval[0] < axis.value < axis.interval[1] < 100


@pytest.mark.parametrize(
    ("value", "direction", "ends"),
    [
        (0.8, "higher", ("0", "1")),
        (1.2, "higher", ("0", "1.3")),
        (0.0, "lower", ("0", "1")),
        (-0.02, "lower", ("-0.02", "0.001")),
        (215.8, "higher", ("0", "227")),
    ],
)
def test_axes_hold_their_marks(value, direction, ends):
    axis = first_axis(make(scores={"x": Score("x", value, direction, 10)}))
    assert axis.ends == ends
    assert 0 <= axis.value <= 100


def test_scores_are_grouped_by_network():
    mixed = {name: Score(name, 1.0, "lower", 10) for name in ("FID", "FD(b)", "KID", "KID(b)")}
    rows = report.scores_table(make(scores=mixed)).rows
    assert [row.cells[0].text for row in rows] == [
        "features of inception-v3-compat",
        "FID ↓",
        "KID ↓",
        "features of b",
        "FD(b) ↓",
        "KID(b) ↓",
    ]
    assert not [row for row in report.scores_table(make()).rows if row.kind == "group"]


def test_digits_recognised_come_first():
    found, real = Recognition(0.985, {"0": 1.0, "1": 0.97}, 200), Recognition(0.99, {}, 1797)
    given = make(digits=report.Digits(found, real))
    assert "| digits recognised ↑ | **98.50%** | 99.00% (N = 1,797) | 200 |" in markdown_of(given)
    without = make(digits=report.Digits(reason="the samples have no labels"))
    assert "digits recognised (the samples have no labels)" in text_of(without)
    assert report.to_json(without)["digits_recognised"]["found"] is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("FID", ("FID", INCEPTION, "")),
        ("IS (torch-fidelity)", ("IS", INCEPTION, "torch-fidelity")),
        ("FD(digits-cnn)", ("FD", "digits-cnn", "")),
        ("sFD(a.b:C)", ("sFD", "a.b:C", "")),
        ("IS(digits-cnn) (torch-fidelity)", ("IS", "digits-cnn", "torch-fidelity")),
    ],
)
def test_names_of_scores_have_parts(name, parts):
    assert parse(name) == parts


@pytest.mark.parametrize("extractor", [INCEPTION, "a.b:C"])
def test_every_score_has_a_kind(extractor):
    parsed = [parse(name) for name in score_names(extractor)]
    assert {one.network for one in parsed} == {extractor}
    assert {one.kind for one in parsed} <= set(KINDS)
    assert len(set(parsed)) == len(parsed)


# -- classes, limits, near-copies ------------------------------------------------------------------


def test_few_classes_are_all_shown_worst_first():
    rows = [
        ClassRow("a", 5, 9, fd=1.0),
        ClassRow("b", 5, 9, fd=3.0),
        ClassRow("c", 1, 9),
        ClassRow("d", 5, 9, fd=3.0, accuracy=0.5),
    ]
    table = report.classes_table(rows)
    assert [row.cells[0].text for row in table.rows] == ["d", "b", "a", "c"]
    assert [row.cells[3].bar for row in table.rows] == [1.0, 1.0, 1 / 3, None]
    assert "| d | 5 / 9 | 50.0% | 3.000 |\n" in markdown_of(make(classes=rows))


def test_many_classes_are_the_worst_and_the_best():
    rows = [ClassRow(str(i), 5, accuracy=i / 100) for i in range(100)]
    names = [row.cells[0].text for row in report.classes_table(rows).rows]
    between = "80 more between the 10 worst and the 10 best: in report.json"
    assert names == [*map(str, range(10)), between, *map(str, range(90, 100))]


def test_limits_and_copies_are_in_page_and_markdown():
    page, markdown = text_of(rich()), markdown_of(rich())
    assert "3.400 ± 0.080" in page
    assert "**3.400** ± 0.080" in markdown
    for text in (page, markdown):
        assert "8.100 at 5,000; 5.900 at 10,000" in text
        assert "not available: needs 1,000 samples" in text
        copies = "By pixels: 1.2% of 10,000 samples are near-copies of one of 1,281,167 images"
        assert copies in text


# -- report.md and the terminal --------------------------------------------------------------------


def test_markdown_has_every_score_and_escapes():
    given = make()
    given.protocol["sampling"]["data"] = "a|b"
    text = markdown_of(given)
    real = "0.520 – 0.610 (N = 898, 5 splits)"
    row = f"| FD(digits-cnn) ↓ | **1.235** (1.10 – 1.40) | {real} | 1,000 / 1,797 | distance of"
    assert row in text
    assert "| KID(digits-cnn)" not in text
    assert "| data | a\\|b |" in text


def test_terminal_table_is_aligned():
    sentence, first, fd, score, missing = report.to_text(make()).splitlines()
    assert sentence == make().verdict
    assert first.index("real") == fd.index("0.520")
    assert fd.startswith("FD(digits-cnn) ↓  1.235 (1.10 – 1.40)  0.520")
    assert score.startswith("IS(digits-cnn) ↑  8.50 ± 0.10")
    assert missing == f"Not available: KID(digits-cnn) ({MISSING})."
    assert len({len(line) for line in (first, fd)}) == 1  # the count is aligned to the right
    assert NETWORK in report.to_text(rich())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5678, "1,235"),
        (3.9426, "3.943"),
        (0.00123456, "0.001235"),
        (-0.00002, "-2e-05"),
        (0.0, "0"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


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
    assert span(low, high) == text


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
    assert show(value) == text
