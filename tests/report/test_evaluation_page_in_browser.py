"""The report as a real browser lays it out; skipped where there is none."""

import pytest
from helpers.browser import browse, measure, needs_browser, require_layout
from helpers.reports import rich
from PIL import Image

from dit.report.evaluation_page import write_report

DARK = "--blink-settings=preferredColorScheme=0"
pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(rich(), tmp_path_factory.mktemp("report"))[2]


def test_the_page_fits_and_everything_is_drawn(page):
    measured, complaints = measure(page)
    assert complaints == []
    require_layout(measured, images=5, sections=8)
    for one in measured.values():
        assert len(one["axes"]) == 10  # one for each score that has a value
        assert all(size > 5 for size in one["axes"])


@pytest.mark.parametrize(("flags", "dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
def test_both_colour_schemes_render(page, tmp_path, flags, dark):
    picture = tmp_path / "shot.png"
    size, shot = "--window-size=600,800", f"--screenshot={picture}"
    browse(page, tmp_path / "profile", *flags, size, shot)
    with Image.open(picture) as opened:
        brightness = sorted(opened.convert("L").tobytes())
    paper, few = brightness[len(brightness) // 2], len(brightness) // 100
    ink = brightness[-few if dark else few]
    assert (paper < 60) == dark
    assert abs(paper - ink) > 120
