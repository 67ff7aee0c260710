"""Pages as a real browser lays them out."""

import html.parser
import json
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(NAMES)}")
WIDTHS = (1200, 420)
MEASURE = """
<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="found"></pre>
%s
<script>
window.onload = () => {
  const frames = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const box = e => e.getBoundingClientRect();
    const wider = [...page.querySelectorAll("body *")]
      .filter(e => box(e).right > root.clientWidth + 1 && !e.closest("table:not(.scores)"))
      .map(e => e.tagName + "." + e.getAttribute("class"));
    return {width: root.clientWidth, scroll: root.scrollWidth, wider: wider,
            images: [...page.images].map(i => i.complete && i.naturalWidth),
            axes: [...page.querySelectorAll("table svg.axis circle")].map(c => box(c).width),
            sections: [...page.querySelectorAll("h2")].map(h => box(h).height)};
  });
  document.getElementById("found").textContent = JSON.stringify(frames);
};
</script>
"""


def browse(page, profile, *flags):
    """Open a file without a network; return the finished process."""
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


def measure(page):
    """Return measures of a page by width, and the complaints of the browser."""
    frame = '<iframe src="%s" style="border:0;width:%dpx;height:900px"></iframe>'
    frames = "".join(frame % (page.name, width) for width in WIDTHS)
    outer = page.with_name("measure.html")
    outer.write_text(MEASURE % frames)
    done = browse(outer, page.with_name("profile"), "--dump-dom")
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    measures = json.loads(Found(done.stdout).text)
    return dict(zip(WIDTHS, measures, strict=True)), complaints


def require_layout(measured, images, sections):
    """Assert that pages do not scroll sideways and show all images and headings."""
    for width, page in measured.items():
        assert (page["width"], page["scroll"], page["wider"]) == (width, width, [])
        assert len(page["images"]) == images
        assert all(page["images"])
        assert len(page["sections"]) == sections
        assert all(height > 0 for height in page["sections"])


class Found(html.parser.HTMLParser):
    """The JSON that the script of `MEASURE` leaves."""

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
