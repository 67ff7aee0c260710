"""The three files of a report."""

import html.parser
import json
import math
import re

import pytest
from PIL import Image

from dit.evaluation import report
from dit.evaluation.metrics import Recognition, Score

MISSING = "needs at least 20 images on both sides, has 3 samples and 1797 reference images"


def make(digits=None, figures=True):
    scores = {
        "fd": Score("FD(digits-cnn)", 1.23456, "lower", 1000, 1797),
        "kid": Score("KID(digits-cnn)", None, "lower", 3, 1797, reason=MISSING),
        "is": Score("IS(digits-cnn)", 8.5, "higher", 1000, deviation=0.1, note="2 splits"),
    }
    floor = {"fd": Score("FD(digits-cnn)", 0.5, "lower", 898, 898)}
    protocol = {"sampling": {"sampler": "heun", "steps": 25, "cfg_scale": 1.5, "cfg_interval": [0.0, 1.0], "eta": None,
                             "vae": "<script>alert(1)</script>", "classes": list(range(1000))}}
    pictures = {"Samples": Image.new("RGB", (64, 32), "red")} if figures else {}
    return report.Report("Evaluation of runs/000", scores, floor, protocol, digits, pictures)


class Page(html.parser.HTMLParser):
    """Collects attributes that fetch something, text, and checks that tags close."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_three_files_are_written(tmp_path):
    paths = report.write_report(make(), tmp_path / "new")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.html", "report.json", "report.md"]


def test_json_is_strict_and_says_why_a_score_is_missing(tmp_path):
    def never(constant):
        raise AssertionError(f"{constant} in JSON")

    text = report.write_report(make(), tmp_path)[0].read_text()
    values = json.loads(text, parse_constant=never)
    assert values["scores"]["fd"]["value"] == 1.23456
    assert values["scores"]["fd"]["floor"]["value"] == 0.5
    assert values["scores"]["kid"]["value"] is None
    assert values["scores"]["kid"]["reason"] == MISSING
    assert values["scores"]["kid"]["floor"] is None
    assert values["protocol"]["sampling"]["cfg_scale"] == 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_never_written(tmp_path, bad):
    whole = make()
    whole.scores["fd"] = Score("FD", bad, "lower", 10)
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_report(whole, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_page_is_self_contained_and_well_formed():
    text = report.to_html(make())
    page = Page(text)
    assert page.open == []
    assert [link[:22] for link in page.links] == ["data:image/png;base64,"]
    assert not re.search(r"https?://|@import|url\(", text)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text  # shown as text


def test_page_shows_values_reasons_floor_and_protocol():
    text = " ".join(Page(report.to_html(make())).text.split())
    for wanted in ("1.235", "0.5000 (N = 898)", "1,000 / 1,797", f"not available: {MISSING}", "± 0.1000", "heun",
                   "cfg_interval", "1000 values, 0 … 999"):
        assert wanted in text
    assert "nan" not in text.lower()
    assert "FID" not in text


def test_markdown_has_every_score_and_escapes_bars():
    whole = make(figures=False)
    whole.protocol["sampling"]["data"] = "a|b"
    text = report.to_markdown(whole)
    assert "| FD(digits-cnn) ↓ | **1.235** | 0.5000 (N = 898) | 1,000 / 1,797 |" in text
    assert f"| KID(digits-cnn) ↓ | not available | – | 3 / 1,797 | {MISSING} |" in text
    assert "a\\|b" in text


def test_recognition_heads_the_table():
    found = Recognition(0.985, {"0": 1.0, "1": 0.97}, 200)
    whole = make(report.Digits(found, Recognition(0.99, {}, 1797)))
    assert report.rows(whole)[0].value == "98.50%"
    assert report.to_json(whole)["digits_recognised"]["found"]["per_class"] == {"0": 1.0, "1": 0.97}
    assert "97.0%" in report.to_html(whole)
    assert "| 1 | 97.0% |" in report.to_markdown(whole)


def test_recognition_without_labels_says_why():
    whole = make(report.Digits(reason="the samples have no labels"))
    assert "not available: the samples have no labels" in report.to_html(whole)
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


@pytest.mark.parametrize(("value", "text"), [(None, "none"), (True, "yes"), (0.1 + 0.2, "0.3"), ([1, 2.5], "1, 2.5"),
                                             ({"a": 1}, "a 1"), (50000, "50000")])
def test_protocol_entries_are_readable(value, text):
    assert report.show(value) == text
