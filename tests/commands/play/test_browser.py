"""The page of `dit play`, driven by a headless Chromium as a visitor does."""

import io
import re
import shlex
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import write_run
from helpers.browser import BROWSER, needs_browser
from helpers.caption_runs import write_text_run
from PIL import Image

from dit.cli import main
from dit.commands.play.actions import Player
from dit.commands.play.command import serve
from dit.commands.play.live import THREAD
from dit.config import PlayConfig
from dit.distributed.ranks import Ranks
from dit.sampling.load import load_to_sample

pytest.importorskip("gradio", reason="needs gradio, of the extra [play]")
api = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive a browser")

pytestmark = [needs_browser, pytest.mark.slow, pytest.mark.usefixtures("small_networks")]

WIDE, NARROW = {"width": 1300, "height": 950}, {"width": 420, "height": 900}
PATIENCE = 120_000  # milliseconds


class Visitor:
    """A browser with the page open, and what it asked other hosts for."""

    def __init__(self, browser, address: str):
        self.address, self.elsewhere, self.complaints = address, [], []
        self.page = browser.new_page(viewport=WIDE)
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", self._note)
        self.page.on("console", self._complain)
        self.page.goto(address)
        self.page.get_by_text("Guidance scale").wait_for()
        self.wait_for_pictures([])

    def _note(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def _complain(self, message) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    @property
    def panel(self):
        return self.page.locator("[role=tabpanel]:visible")

    def press(self, name: str) -> str:
        """Press a button of the tab, wait for its images, and return their command."""
        before = self.sources()
        self.button(name).click()
        return self.wait_for_pictures(before)

    def wait_for_pictures(self, before: list[str]) -> str:
        """Wait for other pictures than these, which are done, and return their command."""
        command = self.panel.locator(".command textarea")
        for _ in range(PATIENCE // 100):
            # it is shown when the images are done
            if "dit" in command.input_value() and self.sources() != before:
                break
            self.page.wait_for_timeout(100)
        self.page.wait_for_timeout(500)
        assert self.sources() != before
        return command.input_value()

    def sources(self) -> list[str]:
        """The addresses of the tab's pictures."""
        return self.panel.locator("img").evaluate_all("images => images.map(image => image.src)")

    def button(self, name: str):
        return self.panel.get_by_role("button", name=name, exact=True)

    def images(self) -> np.ndarray:
        """The pixels of the tab's gallery, [N, H, W, 3]."""
        sources = self.panel.locator("button.thumbnail-item img").evaluate_all(
            "images => images.map(image => image.src)"
        )
        return np.stack([self.pixels(source) for source in sources])

    def pixels(self, source: str) -> np.ndarray:
        content = self.page.request.get(source).body()
        return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("play") / "run")


@contextmanager
def served(run: Path, cfg_scale: float = 2.0) -> Iterator[str]:
    """Serve a page in this process; return its address."""
    config = PlayConfig(run=run, precision="fp32", steps=6, cfg_scale=cfg_scale)
    player = Player(load_to_sample(run, Ranks().device, config), config)
    page, address = serve(player, config)
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def address(run, small_networks):
    with served(run) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser, address):
    visitor = Visitor(browser, address)
    yield visitor
    visitor.page.close()
    assert visitor.elsewhere == []
    assert visitor.complaints == []


def typed(command: str) -> None:
    program, *words = shlex.split(command)
    assert program == "dit"
    assert main(words) == 0


def files(folder: Path) -> np.ndarray:
    names = sorted(file for file in folder.glob("*.png") if file.stem.isdigit())
    return np.stack([np.array(Image.open(name).convert("RGB")) for name in names])


def out_of(command: str, flag: str = "--out") -> Path:
    words = shlex.split(command)
    return Path(words[words.index(flag) + 1])


def edited(run: Path, command: str, kind: str) -> np.ndarray:
    """What a command of `dit edit` writes."""
    before = set((run / "edits").glob(f"{kind}-*"))
    typed(command)
    (folder,) = set((run / "edits").glob(f"{kind}-*")) - before
    return files(folder)


def test_a_page_that_is_opened_draws_pictures(visitor):
    # those of the first visitor, kept, are those of the command
    command = visitor.panel.locator(".command textarea").input_value()
    typed(command)
    assert np.array_equal(files(out_of(command)), visitor.images())
    assert "--cfg-scale 2" in command


def test_what_needs_a_picture_waits_for_one(visitor):
    api.expect(visitor.button("Vary picture 1")).to_be_enabled()
    copy = visitor.panel.get_by_label("Copy")
    api.expect(copy).to_be_visible()
    for tab in ("Inpaint", "Vary"):
        visitor.tab(tab)
        api.expect(visitor.button(tab)).to_be_disabled()
        api.expect(visitor.panel.get_by_label("Copy")).to_have_count(0)
    visitor.tab("Sample")
    visitor.button("Vary picture 1").click()
    api.expect(visitor.button("Vary")).to_be_enabled()


def test_a_sample_forms_and_its_command_makes_the_same_pixels(visitor):
    page = visitor.page
    page.evaluate(
        """() => {
            window.seen = new Set();
            new MutationObserver(() => document.querySelectorAll("button.thumbnail-item img")
                .forEach(image => window.seen.add(image.src))
            ).observe(document.body, {subtree: true, childList: true, attributes: true});
        }"""
    )
    page.get_by_label("Classes").click()
    page.get_by_role("option", name="3", exact=True).click()
    page.keyboard.press("Escape")
    command = visitor.press("Sample")
    images = visitor.images()
    assert "--classes 3 " in command
    # the first ones were predictions
    assert page.evaluate("window.seen.size") >= 2 * len(images) == 16

    typed(command)
    assert np.array_equal(files(out_of(command)), images)


def test_a_drawn_part_of_a_sample_is_painted_anew(visitor, run):
    visitor.press("Sample")
    sample = visitor.images()[1]
    visitor.panel.locator("button.thumbnail-item").nth(1).click()
    visitor.page.get_by_role("button", name="Inpaint picture 2").click()

    canvas = visitor.page.locator("#editor canvas").first
    canvas.wait_for()
    visitor.page.wait_for_timeout(1500)
    box = canvas.bounding_box()
    across = [box["x"] + box["width"] * share for share in (0.3, 0.7)]
    for share in (0.6, 0.65, 0.7):
        height = box["y"] + box["height"] * share
        visitor.page.mouse.move(across[0], height)
        visitor.page.mouse.down()
        visitor.page.mouse.move(across[1], height, steps=12)
        visitor.page.mouse.up()
    visitor.page.wait_for_timeout(500)

    command = visitor.press("Inpaint")
    images = visitor.images()
    changed = (images != sample).any(axis=(0, 3))
    # the stroke is in the lower half; all pixels around are kept
    assert changed[4:].any()
    assert not changed[:3].any()
    assert np.array_equal(edited(run, command, "inpaint"), images)


def test_an_uploaded_image_is_varied(visitor, run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "mine.png")
    visitor.tab("Vary")
    visitor.panel.get_by_test_id("Upload an image-upload-button").set_input_files(
        tmp_path / "mine.png"
    )
    visitor.panel.locator("img").first.wait_for()
    command = visitor.press("Vary")
    assert np.array_equal(edited(run, command, "variations"), visitor.images())


def test_a_file_that_is_no_image_is_a_message_on_the_page(visitor, tmp_path):
    (tmp_path / "mine.png").write_text("not an image")
    visitor.tab("Inpaint")
    visitor.panel.get_by_test_id("Upload an image-upload-button").set_input_files(
        tmp_path / "mine.png"
    )
    message = visitor.page.get_by_text("mine.png cannot be read as an image")
    message.wait_for()
    assert tempfile.gettempdir() not in message.inner_text()


def test_two_seeds_are_interpolated(visitor, run):
    visitor.tab("Interpolate")
    command = visitor.press("Interpolate")
    assert np.array_equal(edited(run, command, "interpolate"), visitor.images())


def test_a_click_shows_the_attention_of_a_patch(visitor, run):
    visitor.tab("Attention")
    visitor.press("Show attention")
    image = visitor.page.locator("#patches img")
    box = image.bounding_box()
    # two by two patches: the lower left one
    image.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.75})
    command = visitor.panel.locator(".command textarea")
    api.expect(command).to_have_value(re.compile(r"--token 1 0\b"))
    visitor.page.wait_for_timeout(500)
    source = visitor.panel.locator("img").last.get_attribute("src")
    typed(command.input_value())
    drawn = np.array(Image.open(run / "show" / "backward-attention.png").convert("RGB"))
    assert np.array_equal(visitor.pixels(source), drawn)


def test_stop_ends_the_sampling(visitor):
    page = visitor.page
    page.get_by_text("Sampler", exact=True).click()
    page.get_by_label("number input for Steps").fill("250")
    page.get_by_label("number input for Number of images").fill("64")
    page.keyboard.press("Tab")
    visitor.button("Sample").click()
    # enabled again when pictures are done, which a stop prevents
    api.expect(visitor.button("Vary picture 1")).to_be_disabled()
    assert sampling()
    visitor.panel.get_by_role("button", name="Stop").click()
    for _ in range(100):
        if not sampling():
            break
        page.wait_for_timeout(100)
    assert not sampling()
    assert visitor.panel.locator(".command textarea").input_value() == ""


def sampling() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())


def test_a_run_without_classes_has_no_picker(browser, tmp_path):
    run = write_run(tmp_path / "run", num_classes=0)
    with served(run, cfg_scale=1.0) as address:
        visitor = Visitor(browser, address)
        assert not visitor.page.get_by_label("Classes").is_visible()
        assert not visitor.page.get_by_label("Captions").is_visible()
        command = visitor.press("Sample")
        typed(command)
        assert np.array_equal(files(out_of(command)), visitor.images())
        visitor.tab("Interpolate")
        assert "--seeds 0 1" in visitor.press("Interpolate")
        assert visitor.complaints == []


def test_a_run_of_captions_has_a_box_for_them(browser, tmp_path):
    run = write_text_run(tmp_path)
    with served(run) as address:
        visitor = Visitor(browser, address)
        assert not visitor.page.get_by_label("Classes").is_visible()
        visitor.page.get_by_label("Captions").fill("a seven\na one")
        command = visitor.press("Sample")
        assert "--prompt 'a seven' 'a one'" in command
        typed(command)
        assert np.array_equal(files(out_of(command)), visitor.images())
        visitor.tab("Interpolate")
        visitor.press("Interpolate")
        assert visitor.complaints == []


def test_the_page_fits_a_narrow_window(visitor):
    visitor.press("Sample")
    visitor.page.set_viewport_size(NARROW)
    visitor.page.wait_for_timeout(500)
    root = "document.documentElement"
    assert visitor.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0
    edges = visitor.panel.locator("button.thumbnail-item").evaluate_all(
        "images => images.map(image => image.getBoundingClientRect().right)"
    )
    for name in ("Sample", "Interpolate", "Inpaint", "Vary", "Attention"):
        api.expect(visitor.page.get_by_role("tab", name=name)).to_be_visible()
    assert len(edges) == 8
    assert max(edges) < NARROW["width"]
