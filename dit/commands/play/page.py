"""The page of `dit play`: its layout, and which action a control starts."""

import functools
import inspect
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from dit.commands.play.actions import (
    MOST_IMAGES,
    Controls,
    Player,
    Shown,
    first_controls,
)
from dit.commands.play.uploads import painted, read_upload, to_pil
from dit.distributed.shortage import find_shortage
from dit.errors import UserError
from dit.models.dit import DiT
from dit.sampling.load import without_captions
from dit.utils.image_size import format_size
from dit.utils.pictures import fitting_scale

SAMPLERS = ["ddpm", "ddim", "euler", "heun", "dpmpp_2m"]
SMALL = 128  # pixels: smaller images are enlarged without smoothing
CANVAS = 512  # pixels of the image to draw on, about
BRUSH = "#f97316"
PICTURE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"]
PRIVATE: dict[str, Any] = dict(api_visibility="private")
QUEUED: dict[str, Any] = dict(concurrency_id="network", concurrency_limit=1, **PRIVATE)
"""Of events that call the network: one at a time."""
CSS = """
.command textarea { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px; }
.small img { image-rendering: pixelated; }
main.fillable { max-width: 1240px !important; margin: 0 auto !important; }
.grid-container { grid-template: none / repeat(4, minmax(0, 1fr)) !important; }
.grid-container { grid-auto-rows: auto !important; }
.grid-wrap { min-height: 0 !important; }
@media (max-width: 480px) {
  .tab-container button { padding: 0 7px !important; font-size: 13px !important; }
  .caption-label { padding: 0 4px !important; font-size: 10px !important; }
}
footer { display: none !important; }
"""
CACHE = (3600, 86_400)  # seconds: how often to look for pictures on disk, and how old they may be
INPAINT, VARY = "Inpaint picture {}", "Vary picture {}"
FAILED = "This did not work"
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]


def theme() -> Any:
    """Return a theme whose fonts are the browser's own: nothing is fetched for it."""
    return gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])


class Page:
    """The components of the page and how they are wired to the actions of a player."""

    def __init__(self, player: Player):
        self.player = player
        self.run = player.run
        self.card = player.run.card
        height, width = self.run.image_size
        self.small = ["small"] if max(height, width) < SMALL else []
        self.first = replace(first_controls(player.run, player.config), prompts=self._captions())
        self.sampled: Shown | None = None  # the first pictures

    def _captions(self) -> str:
        """Return some captions of the data, one a line; none unless the run draws captions."""
        text = self.card.network.conditioning == "text"
        return "\n".join(self.card.classes[:3]) if text else ""

    def build(self) -> Any:
        """Return the page."""
        title = f"dit play {self.run.home.name}"
        with gr.Blocks(
            analytics_enabled=False, title=title, fill_width=True, delete_cache=CACHE
        ) as page:
            self.page = page
            gr.Markdown(self._title())
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self._build_controls()
                with gr.Column(scale=3, min_width=320), gr.Tabs() as self.tabs:
                    with gr.Tab("Sample", id="sample"):
                        self._build_sample()
                    with gr.Tab("Interpolate", id="interpolate"):
                        self._build_interpolate()
                    with gr.Tab("Inpaint", id="inpaint"):
                        self._build_inpaint()
                    with gr.Tab("Vary", id="vary"):
                        self._build_vary()
                    if isinstance(without_captions(self.run.denoise.network), DiT):
                        with gr.Tab("Attention", id="attention"):
                            self._build_attention()
            self._wire_choice()
        return page

    def _title(self) -> str:
        size = format_size(self.run.image_size)
        model, step = self.card.network.model, self.run.weights.step
        return f"### {self.run.home.name}\n{model} after {step:,} steps · {size} pixels"

    # -- controls --------------------------------------------------------------------------------

    def _build_controls(self) -> None:
        """Build what all tabs share; the order is that of `_controls`."""
        first, text = self.first, self.card.network.conditioning == "text"
        named = not text and not self.card.unconditional
        names = [(self.card.class_name(label), label) for label in self.card.ids] if named else []

        self.classes = gr.Dropdown(
            names, multiselect=True, label="Classes", info="none: all in turn", visible=named
        )
        self.prompts = gr.Textbox(
            first.prompts, lines=3, label="Captions", info="one a line", visible=text
        )
        self.negative = gr.Textbox(
            label="Negative caption", info="guidance leads away from it", visible=text
        )
        images = gr.Slider(1, MOST_IMAGES, first.images, step=1, label="Number of images")
        scale = gr.Slider(0, 10, first.cfg_scale, step=0.1, label="Guidance scale", info="1: none")
        seed = _whole_number(first.seed, "Seed")
        another = gr.Button("Next seed", size="sm")
        another.click(lambda value: value + 1, seed, seed, queue=False, show_progress="hidden")
        with gr.Accordion("Sampler", open=False):
            sampler = gr.Dropdown(SAMPLERS, value=first.sampler, label="Sampler")
            steps = gr.Slider(1, 250, first.steps, step=1, label="Steps")
            low = gr.Slider(0, 1, first.cfg_interval[0], step=0.01, label="Guide from time")
            high = gr.Slider(
                0, 1, first.cfg_interval[1], step=0.01, label="… to time", info="1 is noise"
            )
        self.controls = [
            *(self.classes, self.prompts, self.negative),
            *(images, scale, seed, sampler, steps, low, high),
        ]

    # -- tabs ------------------------------------------------------------------------------------

    def _build_sample(self) -> None:
        start = self._buttons("Sample")
        self.gallery, command = self._results()
        with gr.Row():
            self.to_inpaint = gr.Button(INPAINT.format(1), size="sm", interactive=False)
            self.to_vary = gr.Button(VARY.format(1), size="sm", interactive=False)
        self.made = gr.State([])
        self.chosen = gr.State(0)
        edits = [self.to_inpaint, self.to_vary]
        chosen = [self.chosen, *edits]
        self.gallery.select(_choose, None, chosen, queue=False, show_progress="hidden")

        def show(shown: Shown) -> list[Any]:
            # pictures that still form are not edited
            done = gr.update(interactive=bool(shown.command))
            return [*_outputs_of(shown), list(shown.images), done, done]

        def open_page() -> Iterator[list[Any]]:
            yield from map(show, self._first_sample())

        outputs = [self.gallery, command, self.made, *edits]
        self.opened = self.page.load(
            _with_messages(open_page), None, outputs, **_progress_on(self.gallery), **QUEUED
        )
        self._start(start, self.player.sample, [], outputs, show)

    def _first_sample(self) -> Iterator[Shown]:
        """Sample with the first controls; for later visitors the result is kept."""
        if self.sampled:
            yield self.sampled
            return
        for shown in self.player.sample(self.first):
            yield shown
            self.sampled = shown if shown.command else None

    def _build_interpolate(self) -> None:
        names: Any = self.classes.choices
        named = self.classes.visible
        ends = (self.card.ids[0], self.card.ids[-1]) if named else (None, None)
        with gr.Row():
            one = gr.Dropdown(names, value=ends[0], label="From", visible=named)
            other = gr.Dropdown(names, value=ends[1], label="To", visible=named)
        if self.prompts.visible:
            gr.Markdown("Between the first two captions.")
        first, last = self.first.seed, self.first.seed if named else self.first.seed + 1
        with gr.Row():
            seeds = [
                _whole_number(first, "Seed of the first"),
                _whole_number(last, "Seed of the last"),
            ]
        frames = gr.Slider(2, 32, 8, step=1, label="Images from end to end")
        gr.Markdown("Guidance and sampler are those at the side.")
        start = self._buttons("Interpolate")
        gallery, command = self._results()

        def act(controls: Controls, *values: Any) -> Iterator[Shown]:
            one_end, other_end, *both, count = values
            classes = (one_end, other_end) if named else ()
            from_seed, to_seed = (int(seed or 0) for seed in both)
            return self.player.interpolate(controls, classes, (from_seed, to_seed), int(count))

        self._start(start, act, [one, other, *seeds, frames], [gallery, command])

    def _build_inpaint(self) -> None:
        height, width = self.run.image_size
        factor = fitting_scale(max(height, width), CANVAS)
        with gr.Row():
            with gr.Column(min_width=320):
                upload = self._upload()
                self.editor = gr.ImageEditor(
                    label="Draw on the part to paint anew",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=48, colors=[BRUSH], color_mode="fixed"),
                    canvas_size=(width * factor, height * factor),
                    fixed_canvas=True,
                    buttons=[],
                    elem_id="editor",
                )
                paste = gr.Checkbox(True, label="Keep the other pixels exactly")
            with gr.Column(min_width=320):
                start = self._buttons("Inpaint", interactive=False)
                gallery, command = self._results()
        self.inpainted = gr.State(None)

        def act(controls: Controls, *values: Any) -> Iterator[Shown]:
            image, drawing, keep_pixels = values
            known = _require_image(image)
            paint = painted(drawing, self.run.image_size)
            return self.player.inpaint(controls, known, paint, keep_pixels)

        inputs = [self.inpainted, self.editor, paste]
        self._start(start, act, inputs, [gallery, command])
        self.start_inpaint = start[0]
        uploaded = [self.inpainted, self.editor, self.start_inpaint]
        upload.upload(_with_messages(self._load_to_draw), upload, uploaded, **PRIVATE)

    def _build_vary(self) -> None:
        with gr.Row():
            with gr.Column(min_width=320):
                upload = self._upload()
                self.original = gr.Image(
                    label="Image",
                    show_label=False,
                    interactive=False,
                    height=320,
                    elem_classes=self.small,
                    format="png",
                    buttons=[],
                )
                strength = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Strength", info="0: the image, 1: from noise"
                )
            with gr.Column(min_width=320):
                start = self._buttons("Vary", interactive=False)
                gallery, command = self._results()
        self.varied = gr.State(None)

        def act(controls: Controls, *values: Any) -> Iterator[Shown]:
            image, amount = values
            return self.player.vary(controls, _require_image(image), amount)

        self._start(start, act, [self.varied, strength], [gallery, command])
        self.start_vary = start[0]
        uploaded = [self.varied, self.original, self.start_vary]
        upload.upload(_with_messages(self._load_to_vary), upload, uploaded, **PRIVATE)

    def _upload(self) -> Any:
        gr.Markdown("Upload an image, or choose one in the tab Sample.")
        return gr.UploadButton("Upload an image", file_types=PICTURE_TYPES, size="sm")

    def _build_attention(self) -> None:
        gr.Markdown(
            "What a patch of the first image attends to, at four times of sampling. Click on a "
            "patch, or type its row and column."
        )
        with gr.Row():
            # the patch in the middle, as in `dit show`
            rows, columns = self.player.tokens
            row = _whole_number(rows // 2, "Row")
            column = _whole_number(columns // 2, "Column")
        start = gr.Button("Show attention", variant="primary")
        picture: dict[str, Any] = dict(show_label=False, interactive=False, format="png")
        with gr.Row():
            with gr.Column(scale=1, min_width=200):
                image = gr.Image(label="First image", buttons=[], elem_id="patches", **picture)
            with gr.Column(scale=2, min_width=320):
                sheet = gr.Image(label="Attention", buttons=["fullscreen"], **picture)
        outputs = [row, column, image, sheet, self._command()]

        inputs = [*self.controls, row, column]
        waiting: dict[str, Any] = dict(cancels=[self.opened], **QUEUED)
        start.click(_with_messages(self._attend), inputs, outputs, **waiting)
        clicked = [*self.controls, image]
        image.select(_with_messages(self._attend_at), clicked, outputs, **waiting)

    def _attend(self, *values: Any) -> list[Any]:
        """Return row, column and pictures of the attention of a patch, and their command."""
        *controls, row, column = values
        token = int(row or 0), int(column or 0)
        found = self.player.attention(_controls(*controls), token)
        sheet = served(found.sheet, found.command)
        return [*token, served(found.image), sheet, _to_copy(found.command)]

    def _attend_at(self, event: gr.SelectData, *values: Any) -> list[Any]:
        """Return the same for the patch that was clicked on the image, an array [H, W, 3]."""
        *controls, image = values
        height, width = image.shape[:2]
        rows, columns = self.player.tokens
        x, y = event.index
        return self._attend(*controls, int(y * rows / height), int(x * columns / width))

    # -- parts of a tab ----------------------------------------------------------------------------

    def _buttons(self, name: str, interactive: bool = True) -> tuple[Any, Any]:
        """Build the buttons that start and stop an action; without an image it cannot start."""
        look: dict[str, Any] = dict(variant="primary", scale=3, min_width=120)
        with gr.Row():
            start = gr.Button(name, interactive=interactive, **look)
            stop = gr.Button("Stop", scale=1, min_width=80)
        return start, stop

    def _results(self) -> tuple[Any, Any]:
        gallery = gr.Gallery(
            label="Images",
            show_label=False,
            columns=4,
            height="auto",
            object_fit="contain",
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_classes=self.small,
        )
        return gallery, self._command()

    def _command(self) -> Any:
        return gr.Textbox(
            label="The command of these pictures",
            lines=2,
            interactive=False,
            buttons=[],
            elem_classes=["command"],
        )

    def _start(
        self,
        buttons: tuple[Any, Any],
        action: Callable[..., Iterator[Shown]],
        inputs: list[Any],
        outputs: list[Any],
        show: Callable[[Shown], list[Any]] | None = None,
    ) -> None:
        """Let the first button start an action, with the controls and `inputs`, the second end it.

        Args:
            show: returns the values of `outputs`; unless given, those of a gallery and a command.
        """
        show = show or _outputs_of

        def act(*values: Any) -> Iterator[list[Any]]:
            count = len(self.controls)
            yield from map(show, action(_controls(*values[:count]), *values[count:]))

        start, stop = buttons
        started = start.click(
            _with_messages(act),
            [*self.controls, *inputs],
            outputs,
            **_progress_on(outputs[0]),
            # nobody waits for the first pictures any longer
            cancels=[self.opened],
            **QUEUED,
        )
        stop.click(None, cancels=[started, self.opened], **PRIVATE)

    # -- from tab to tab ---------------------------------------------------------------------------

    def _wire_choice(self) -> None:
        """Let the chosen sample be edited in another tab."""

        def choose(images: list[Tensor], index: int) -> Tensor:
            if not images:
                raise UserError("no picture yet", "one of the tab Sample", "sample first")
            return images[min(index, len(images) - 1)]

        def inpaint(images: list[Tensor], index: int) -> list[Any]:
            image = choose(images, index)
            return [*self._to_draw(image), gr.Tabs(selected="inpaint")]

        def vary(images: list[Tensor], index: int) -> list[Any]:
            image = choose(images, index)
            return [*self._to_vary(image), gr.Tabs(selected="vary")]

        inputs = [self.made, self.chosen]
        self.to_inpaint.click(
            _with_messages(inpaint),
            inputs,
            [self.inpainted, self.editor, self.start_inpaint, self.tabs],
            **PRIVATE,
        )
        self.to_vary.click(
            _with_messages(vary),
            inputs,
            [self.varied, self.original, self.start_vary, self.tabs],
            **PRIVATE,
        )

    def _load_to_draw(self, file: str) -> list[Any]:
        return self._to_draw(read_upload(file, self.run))

    def _load_to_vary(self, file: str) -> list[Any]:
        return self._to_vary(read_upload(file, self.run))

    def _to_draw(self, image: Tensor) -> list[Any]:
        """Return an image, its enlargement to draw on, and that inpainting can start."""
        large = _enlarged(image)
        canvas = {"background": large, "layers": [], "composite": large}
        return [image, canvas, gr.update(interactive=True)]

    def _to_vary(self, image: Tensor) -> list[Any]:
        """Return an image, its enlargement, and that varying can start."""
        return [image, served(_enlarged(image)), gr.update(interactive=True)]


def _enlarged(image: Tensor) -> Image.Image:
    picture = to_pil(image)
    factor = fitting_scale(max(picture.size), CANVAS)
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, Image.Resampling.NEAREST)


def _whole_number(value: int, label: str) -> Any:
    return gr.Number(value, precision=0, minimum=0, label=label)


def served(picture: Image.Image, command: str = "") -> Image.Image:
    """Return a picture to show, with the command that makes it as text in its PNG.

    gradio names the file by its bytes, and would rewrite one that a browser is just reading. So all
    are different.
    """
    picture.info["Number"] = secrets.token_hex(8)
    if command:
        picture.info["Command"] = command
    return picture


def _outputs_of(shown: Shown) -> list[Any]:
    """Return what a gallery and the command below it show."""
    images = [served(to_pil(image), shown.command) for image in shown.images]
    return [list(zip(images, shown.captions, strict=True)), _to_copy(shown.command)]


def _progress_on(gallery: Any) -> dict[str, Any]:
    """Return settings of an event that shows its progress on the pictures alone."""
    return dict(show_progress="minimal", show_progress_on=[gallery])


def _to_copy(command: str) -> Any:
    """Return a command as the value of its box, with a button to copy it; "": none yet."""
    return gr.update(value=command, buttons=["copy"] if command else [])


def _controls(*values: Any) -> Controls:
    """Return the controls from the values of the components."""
    classes, prompts, negative, images, scale, seed, sampler, steps, low, high = values
    return Controls(
        classes=tuple(classes or ()),
        prompts=prompts or "",
        negative_prompt=negative or "",
        images=int(images),
        cfg_scale=float(scale),
        cfg_interval=(float(low), float(high)),
        sampler=sampler,
        steps=int(steps),
        seed=int(seed or 0),
    )


def _choose(event: gr.SelectData) -> list[Any]:
    """Return the index of a picture that was clicked, and labels of the buttons that edit it."""
    number = event.index + 1
    return [event.index, INPAINT.format(number), VARY.format(number)]


def _require_image(image: Tensor | None) -> Tensor:
    if image is None:
        raise UserError("no image", "an image", "upload one, or choose one in the tab Sample")
    return torch.as_tensor(image)


def _with_messages(action: Callable[..., Any]) -> Callable[..., Any]:
    """Return the action; what the visitor did wrong, or the machine lacks, is shown on the page."""
    if inspect.isgeneratorfunction(action):

        @functools.wraps(action)
        def generating(*values: Any) -> Iterator[Any]:
            with _messages():
                yield from action(*values)

        return generating

    @functools.wraps(action)
    def calling(*values: Any, **named: Any) -> Any:
        with _messages():
            return action(*values, **named)

    return calling


@contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        known = error if isinstance(error, (UserError, OSError)) else find_shortage(error, None)
        if known is None:
            raise
        raise gr.Error(str(known), duration=None, print_exception=False, title=FAILED) from error
