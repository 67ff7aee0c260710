"""What the page does, without the page: from its controls to images and to their commands.

Each action builds the flags of a command and runs them as the command does. So the command that is
shown makes the same pixels.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dit.commands import show
from dit.commands.edit import plan
from dit.commands.play.live import while_forming
from dit.commands.play.uploads import keep, mask_pixels, to_pil
from dit.config import EditConfig, PlayConfig, SampleConfig, SamplerConfig, ShowConfig
from dit.config.command_line import flag_words
from dit.errors import UserError
from dit.sampling.classes import class_ids
from dit.sampling.edit import Edit, Request
from dit.sampling.load import LoadedRun, with_prompts, without_captions
from dit.sampling.pipeline import build_pipeline
from dit.sampling.resolve import find_sampler, find_steps
from dit.utils import pictures
from dit.utils.files import command_line, shell_quote

MOST_IMAGES = 64  # at once
MOST_STEPS = 1000
CLICKED = 320  # pixels of the image whose tokens are clicked, about
ATTENTION_TIMES = "4"


@dataclass(frozen=True)
class Controls:
    """What the controls of the page say; flags of the same names have the same meaning.

    Attributes:
        classes: ids; none: all.
        prompts: captions of a run with --conditioning text, one a line; none: those of its data.
        images: about how many to make.
    """

    cfg_scale: float
    sampler: str
    steps: int
    seed: int
    classes: tuple[int, ...] = ()
    prompts: str = ""
    negative_prompt: str = ""
    images: int = 8
    cfg_interval: tuple[float, float] = (0.0, 1.0)


class Shown(NamedTuple):
    """Images that form, or are done: then with the command that makes them."""

    images: Tensor  # uint8 [N, 3, H, W]
    captions: list[str]  # of each image
    command: str


class Attention(NamedTuple):
    """The attention of a token."""

    image: Image.Image  # to click on, with the token outlined
    sheet: Image.Image  # as `dit show` draws it
    command: str


def first_controls(run: LoadedRun, config: SamplerConfig) -> Controls:
    """Return what the controls say at first: the flags of `dit play`."""
    return Controls(
        cfg_scale=config.cfg_scale,
        cfg_interval=config.cfg_interval,
        sampler=find_sampler(config.sampler, run.card),
        steps=find_steps(config, run.card),
        seed=config.seed,
    )


class Player:
    """The actions of the page on one run.

    Args:
        run: loaded once; all actions share it, one at a time.
        config: flags of `dit play`, with a scale, among them those that have no control.
    """

    def __init__(self, run: LoadedRun, config: PlayConfig):
        self.run, self.config = run, config
        # of the sample whose attention was shown last
        self._traced: tuple[ShowConfig, list[show.Moment]] | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Rows and columns of tokens in an image."""
        network = without_captions(self.run.denoise.network)
        _, height, width = self.run.latent_shape
        return height // network.patch_size, width // network.patch_size

    # -- actions -------------------------------------------------------------------------------

    def sample(self, controls: Controls) -> Iterator[Shown]:
        """Sample images, of the chosen classes in turn."""
        flags = self._flags(controls)
        name = f"play-{_digits(flags, controls.images)}"
        config = SampleConfig(
            **flags, num_samples=controls.images, out=self.run.home / "samples" / name
        )
        run, classes = self._with_classes(config)
        # as sample.py --num-samples does
        count = controls.images
        labels = torch.tensor([classes[i % len(classes)] for i in range(count)])
        small = replace(config, batch_size=min(config.batch_size, count))
        pipeline = build_pipeline(run, small, classes)
        edit = Edit((Request(pipeline, labels, torch.arange(count)),), count, {})
        yield from _form(edit, _captions(run, edit), command_of("sample", config))

    def interpolate(
        self, controls: Controls, ends: tuple[int, ...], seeds: tuple[int, int], frames: int
    ) -> Iterator[Shown]:
        """Draw the way between two classes, or captions, and two seeds."""
        flags = self._flags(replace(controls, classes=ends))
        # these take its place
        flags.pop("seed")
        config = EditConfig(**flags, interpolate=True, seeds=seeds, frames=frames, per_class=1)
        if config.prompt and len(config.prompt) > 2:
            config = replace(config, prompt=config.prompt[:2])
        yield from self._edit(config)

    def inpaint(
        self, controls: Controls, image: Tensor, paint: Tensor, paste: bool = True
    ) -> Iterator[Shown]:
        """Generate the part `paint` [H, W] of an image uint8 [3, H, W] anew."""
        config = EditConfig(
            **self._flags(controls),
            inpaint=keep(self.run, image),
            mask=keep(self.run, mask_pixels(paint)),
            paste=paste,
            per_class=self._per_class(controls),
        )
        yield from self._edit(config)

    def vary(self, controls: Controls, image: Tensor, strength: float) -> Iterator[Shown]:
        """Make images like one, uint8 [3, H, W]."""
        config = EditConfig(
            **self._flags(controls),
            variations=keep(self.run, image),
            strength=strength,
            per_class=self._per_class(controls),
        )
        yield from self._edit(config)

    def attention(self, controls: Controls, token: tuple[int, int]) -> Attention:
        """Show what a token (row, column) of the first image attends to."""
        flags = self._flags(controls)
        flags.pop("negative_prompt")
        config = ShowConfig(
            **flags,
            direction="backward",
            num_images=1,
            times=ATTENTION_TIMES,
            token=token,
        )
        run = with_prompts(self.run, config.prompt) if config.prompt else self.run
        query = show.attention_query(run, config)
        assert query, "the page has no attention of other networks"
        pipeline = build_pipeline(run, config)
        labels, _ = show.labels_to_show(run, config)

        # another token of the same image needs no other sample
        key = replace(config, token=None)
        if self._traced is None or self._traced[0] != key:
            self._traced = key, show.backward(pipeline, labels)
        moments = self._traced[1]
        times = show.parse_times(config.times)
        columns = show.select_moments(moments, times, pipeline.process)
        story = show.Story(pipeline, labels, columns, [], Path())
        sheet = story.sheet(show.attention_column(story, query), show.attention_rows(query))

        pixels = run.autoencoder.decode(moments[-1].x0).cpu()
        scale = pictures.fitting_scale(max(run.image_size), CLICKED)
        enlarged = pictures.enlarge(pixels, (scale, scale))
        image = pictures.outline(enlarged, query.token, query.tokens(run))[0]
        return Attention(to_pil(image), sheet, command_of("show", config))

    # -- from controls to flags ------------------------------------------------------------------

    def _flags(self, controls: Controls) -> dict[str, Any]:
        """Return the flags that all commands share; one that nothing would read has its default."""
        _require_few(controls)
        base = {field.name: getattr(self.config, field.name) for field in fields(SamplerConfig)}
        default = {field.name: field.default for field in fields(SamplerConfig)}
        names = ("cfg_scale", "cfg_interval", "sampler", "steps", "seed")
        flags = base | {name: getattr(controls, name) for name in names}

        unread = []
        if controls.cfg_scale == 1:
            unread += ["cfg_interval", "cfg_channels", "guide"]
        if controls.sampler != "ddim":
            unread.append("eta")
        if controls.sampler != "ddpm":
            unread.append("variance")
        flags |= {name: default[name] for name in unread}

        words = tuple(self._word(label) for label in controls.classes)
        prompts = tuple(line.strip() for line in controls.prompts.splitlines() if line.strip())
        led_away = controls.cfg_scale != 1 and not flags["guide"]
        return flags | {
            "run": self.config.run,
            "classes": words or None,
            "prompt": prompts or None,
            "negative_prompt": controls.negative_prompt.strip() if led_away else "",
        }

    def _word(self, label: int) -> str:
        """Return the name of a class, or its id where the name means another or several."""
        card = self.run.card
        name = card.class_name(label)
        try:
            found, _ = class_ids([name], card)
        except UserError:
            return str(label)
        return name if found == [label] else str(label)

    def _with_classes(self, config: SampleConfig | EditConfig) -> tuple[LoadedRun, list[int]]:
        run = self.run
        if config.prompt or config.negative_prompt:
            run = with_prompts(run, config.prompt or (), config.negative_prompt)
        return run, class_ids(config.classes, run.card)[0]

    def _per_class(self, controls: Controls) -> int:
        prompts = [line for line in controls.prompts.splitlines() if line.strip()]
        rows = len(controls.classes or prompts or self.run.card.ids)
        return max(1, math.ceil(controls.images / rows))

    # -- to images ---------------------------------------------------------------------------------

    def _edit(self, config: EditConfig) -> Iterator[Shown]:
        run, classes = self._with_classes(config)
        pipeline, planned = plan(run, config, classes)
        images = sum(len(request.labels) for request in planned.requests)
        if images > MOST_IMAGES:
            raise UserError(f"{images} images", f"1 to {MOST_IMAGES}", "choose fewer classes")
        captions = _captions(run, planned)
        if config.interpolate:
            ends = pipeline.classes[0], pipeline.classes[-1]
            names = [run.card.class_name(end) for end in ends if not run.card.unconditional]
            middle = [""] * (config.frames - len(names))
            captions = [*names[:1], *middle, *names[1:]]
        yield from _form(planned, captions, command_of("edit", config))


def _form(edit: Edit, captions: list[str], command: str) -> Iterator[Shown]:
    for images, done in while_forming(edit):
        yield Shown(images, captions, command if done else "")


def _captions(run: LoadedRun, edit: Edit) -> list[str]:
    """Return the class or caption of each image."""
    labels = [int(label) for request in edit.requests for label in request.labels]
    if run.card.unconditional:
        return [""] * len(labels)
    return [run.card.class_name(label) for label in labels]


def command_of(name: str, config: Any) -> str:
    """Return the command line of a configuration, as it is typed."""
    return " ".join([command_line(name), *map(shell_quote, flag_words(config))])


def _digits(flags: dict[str, Any], images: int) -> str:
    """Return six hex digits of a hash of the settings of a sample, for its folder."""
    text = f"{sorted(flags.items(), key=str)} {images}"
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _require_few(controls: Controls) -> None:
    """Refuse what would keep a shared page busy for long."""
    for what, value, most in (
        ("images", controls.images, MOST_IMAGES),
        ("steps", controls.steps, MOST_STEPS),
    ):
        if not 1 <= value <= most:
            raise UserError(f"{value} {what}", f"1 to {most}", "")
