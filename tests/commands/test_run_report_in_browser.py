"""The page of a run as a real browser lays it out; skipped where there is none."""

import json

import pytest
from test_evaluation_page_in_browser import LOOK, WIDTHS, Found, browse, pytestmark  # noqa: F401
from test_run_report import home  # noqa: F401

from dit.commands.report.page import write_page


@pytest.fixture
def looked(home):  # noqa: F811
    """Measures of the page by width, and what the browser complained of."""
    write_page(home)
    frames = [
        f'<iframe src="report.html" style="border:0;width:{width}px;height:900px"></iframe>'
        for width in WIDTHS
    ]
    (home / "look.html").write_text(LOOK % "".join(frames))
    done = browse(home / "look.html", home / "profile", "--dump-dom")
    return dict(zip(WIDTHS, json.loads(Found(done.stdout).text), strict=True)), done.stderr


def test_the_page_of_a_run_fits_and_is_drawn(looked):
    for width, measured in looked[0].items():
        assert (measured["width"], measured["scroll"], measured["wider"]) == (width, width, [])
        assert len(measured["images"]) == 11  # nine curves, samples, scores
        assert all(measured["images"])
        assert len(measured["sections"]) == 6
        assert all(height > 0 for height in measured["sections"])
    assert [line for line in looked[1].splitlines() if "CONSOLE" in line] == []
