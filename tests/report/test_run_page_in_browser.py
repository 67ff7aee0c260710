"""The page of a run as a real browser lays it out; skipped where there is none."""

import pytest
from helpers.browser import measure, needs_browser, require_layout
from helpers.run_pages import fill_run

from dit.report.run_page import write_page

pytestmark = [needs_browser, pytest.mark.usefixtures("small_networks")]


def test_the_page_of_a_run_fits_and_is_drawn(make_run):
    measured, complaints = measure(write_page(fill_run(make_run(steps=20))))
    assert complaints == []
    require_layout(measured, images=11, sections=6)  # nine curves, samples, scores
