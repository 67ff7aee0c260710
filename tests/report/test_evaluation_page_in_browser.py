"""The report as a real browser lays it out; skipped where there is none."""

import html.parser
import json
import shutil
import subprocess

import pytest
from PIL import Image
from test_evaluation_page import rich

from dit.report import evaluation_page as report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = (1200, 420)
DARK = "--blink-settings=preferredColorScheme=0"
LOOK = """
<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="found"></pre>
%s
<script>
window.onload = () => {
  const frames = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const wider = [...page.querySelectorAll("body *")]
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest("table:not(.scores)"))
      .map(e => e.tagName + "." + e.getAttribute("class"));
    return {width: root.clientWidth, scroll: root.scrollWidth, wider: wider,
            images: [...page.images].map(i => i.complete && i.naturalWidth),
            axes: [...page.querySelectorAll("table svg.axis circle")].map(c => c.getBoundingClientRect().width),
            sections: [...page.querySelectorAll("h2")].map(h => h.getBoundingClientRect().height)};
  });
  document.getElementById("found").textContent = JSON.stringify(frames);
};
</script>
"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs chromium, chromium-browser or google-chrome"
)


def browse(page, profile, *flags):
    """What the browser prints; it opens the page as a file, without a network."""
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


class Found(html.parser.HTMLParser):
    """The JSON that the script of `LOOK` leaves."""

    def __init__(self, dom):
        super().__init__()
        self.inside, self.text = False, ""
        self.feed(dom)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "pre"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.text += data if self.inside else ""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The rich report in a folder of its own."""
    out = tmp_path_factory.mktemp("report")
    report.write_report(rich(), out)
    return out


@pytest.fixture(scope="module")
def looked(written):
    """Measures of the page at every width, by width, and what the browser complained of."""
    frames = [
        f'<iframe src="report.html" style="border:0;width:{width}px;height:900px"></iframe>'
        for width in WIDTHS
    ]
    (written / "look.html").write_text(LOOK % "".join(frames))
    done = browse(written / "look.html", written / "profile", "--dump-dom")
    measures = json.loads(Found(done.stdout).text)
    return dict(zip(WIDTHS, measures, strict=True)), done.stderr


@pytest.mark.parametrize("width", WIDTHS)
def test_page_never_scrolls_sideways(looked, width):
    measured = looked[0][width]
    assert measured["width"] == width
    assert measured["scroll"] == width
    assert measured["wider"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_there_and_drawn(looked, width):
    measured = looked[0][width]
    assert len(measured["images"]) == 5
    assert all(measured["images"])
    assert len(measured["axes"]) == 10  # of the scores that there are
    assert all(size > 5 for size in measured["axes"])
    assert len(measured["sections"]) == 8
    assert all(height > 0 for height in measured["sections"])


def test_browser_has_nothing_to_complain_of(looked):
    assert [line for line in looked[1].splitlines() if "CONSOLE" in line] == []


@pytest.mark.parametrize(("flags", "dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
def test_both_colour_schemes_render(written, tmp_path, flags, dark):
    picture = tmp_path / "shot.png"
    browse(
        written / "report.html",
        tmp_path / "profile",
        *flags,
        "--window-size=600,800",
        f"--screenshot={picture}",
    )
    with Image.open(picture) as shot:
        brightness = sorted(shot.convert("L").tobytes())
    paper, few = brightness[len(brightness) // 2], len(brightness) // 100
    ink = brightness[-few if dark else few]
    assert (paper < 60) == dark
    assert abs(paper - ink) > 120
