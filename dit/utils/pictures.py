"""Figures: labelled grids of images, strips and GIFs of them, and the loss curve."""

import io
import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dit.utils.files import write_bytes

PAPER = (255, 255, 255)
INK = (40, 44, 52)
PALE = (120, 126, 138)
MARK = (64, 224, 208)
GAP = 4  # pixels between cells
BREAK = 10  # further pixels between groups of rows
WIDEST_NAME = 160  # pixels of a row's label, where its images are small
CAPTION_HEIGHT = 60  # maximum pixels of a caption below an image
SMOOTHED_FROM = 10  # lines of a log
HEAT = 0.8  # opacity of a heat map on its image

Item = TypeVar("Item")


def fitting_scale(size: int, target: int = 64) -> int:
    """Return the largest integer scale at which images of `size` pixels stay within `target`."""
    return max(1, target // size)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many of the items, evenly spaced."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def grid(
    images: torch.Tensor,
    labels: Sequence[str] | None,
    columns: int,
    scale: int = 1,
    *,
    headings: Sequence[str] | None = None,
    together: int = 0,
) -> Image.Image:
    """Arrange images in rows, each enlarged `scale` times without smoothing.

    Args:
        images: [N, 3, H, W] uint8, filled in row by row.
        labels: one for each row (written to its left), or one for each image (written below it).
        headings: one for each column, of one line or several.
        together: rows in a group; its first label is black, the others gray. 0: no groups.
    """
    rows = math.ceil(len(images) / columns)
    by_row = labels is not None and len(labels) == rows
    assert labels is None or len(labels) in (rows, len(images)), "one label a row, or one an image"
    height = images.shape[-2] * scale
    width = images.shape[-1] * scale
    box = (max(2 * width, WIDEST_NAME), height) if by_row else (width, CAPTION_HEIGHT)
    names = _fit_labels(labels or [], *box, largest=max(11, min(16, height // 4)))
    heads = _fit_headings(headings or [], width)

    left = GAP
    if by_row:
        left += _widest(names.lines, names.font) + 2 * GAP
    top = GAP + _text_height(heads.lines, heads.font)
    caption = 0 if by_row else _text_height(names.lines, names.font)
    xs = _positions(columns, left, width)
    ys = _positions(rows, top, height + caption, together)

    right = xs[-1] + width + GAP
    bottom = ys[-1] + height + caption + GAP
    sheet = Image.new("RGB", (right, bottom), PAPER)
    places = [(x, y) for y in ys for x in xs][: len(images)]
    for image, place in zip(images, places, strict=True):
        enlarged = _to_pil(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, place)

    draw = ImageDraw.Draw(sheet)
    if by_row:
        middles = [y + height // 2 for y in ys]
        _draw_row_labels(draw, names, left, middles, together)
    else:
        _draw_captions(draw, names, [(x + width // 2, y + height) for x, y in places])
    _draw_headings(draw, heads, [x + width // 2 for x in xs])
    return sheet


def _positions(count: int, first: int, size: int, together: int = 0) -> list[int]:
    """Return where cells begin along a side, in groups of `together` if it is not 0."""
    breaks = [i // together * BREAK if together else 0 for i in range(count)]
    return [first + i * (size + GAP) + breaks[i] for i in range(count)]


class _Texts(NamedTuple):
    """Texts that fit their cells, and their font."""

    lines: list[str]
    font: Any


def _fit_labels(labels: Sequence[str], width: int, height: int, largest: int) -> _Texts:
    font = _label_font(labels, width, height, largest)
    return _Texts([_fit(label, width, height, font) for label in labels], font)


def _fit_headings(headings: Sequence[str], width: int) -> _Texts:
    font = _fitting_font(headings, width)
    return _Texts([_fit_lines(heading, width, font) for heading in headings], font)


def _draw_captions(draw: Any, texts: _Texts, places: Sequence[tuple[int, int]]) -> None:
    for place, text in zip(places, texts.lines, strict=False):
        draw.text(place, text, INK, texts.font, anchor="ma", align="center")


def _draw_headings(draw: Any, texts: _Texts, xs: Sequence[int]) -> None:
    for x, text in zip(xs, texts.lines, strict=False):
        draw.multiline_text(
            (x, GAP), text, INK, texts.font, anchor="ma", align="center", spacing=GAP
        )


def _draw_row_labels(draw: Any, texts: _Texts, left: int, ys: Sequence[int], together: int) -> None:
    for row, text in enumerate(texts.lines):
        ink = PALE if together and row % together else INK
        end = (left - 2 * GAP, ys[row])
        draw.text(end, text, ink, texts.font, anchor="rm", align="right")


def heat(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Overlay gray images with weights of tokens, each image's scaled from black to brightest.

    Args:
        images: [N, 3, H, W] uint8.
        weights: [N, h, w], where h divides H and w divides W.

    Returns:
        uint8 [N, 3, H, W].
    """
    from matplotlib import colormaps

    weights = weights.float().cpu()
    low = weights.amin((1, 2), keepdim=True)
    high = weights.amax((1, 2), keepdim=True)
    contrast = (high - low).clamp(min=torch.finfo().tiny)
    weights = (weights - low) / contrast

    rgb = colormaps["inferno"](weights.numpy())[..., :3]
    colours = torch.from_numpy(rgb).permute(0, 3, 1, 2) * 255
    down = images.shape[-2] // weights.shape[1]
    across = images.shape[-1] // weights.shape[2]
    colours = enlarge(colours, (down, across))

    gray = images.float().mean(1, keepdim=True)
    mixed = gray * (1 - HEAT) + colours * HEAT
    return mixed.round().to(torch.uint8)


def outline(images: torch.Tensor, cell: tuple[int, int], cells: tuple[int, int]) -> torch.Tensor:
    """Frame the cell (row, column) of images [N, 3, H, W] that have `cells` (rows, columns)."""
    height = images.shape[-2] // cells[0]
    width = images.shape[-1] // cells[1]
    thick = max(1, min(3, height // 3, width // 3))
    top = cell[0] * height
    left = cell[1] * width

    frame = torch.zeros(images.shape[-2:], dtype=torch.bool)
    within = frame[top : top + height, left : left + width]
    within.fill_(True)
    within[thick : height - thick, thick : width - thick] = False
    colour = torch.tensor(MARK, dtype=torch.uint8).view(3, 1, 1)
    return torch.where(frame, colour, images)


def enlarge(images: torch.Tensor, factors: tuple[int, int]) -> torch.Tensor:
    """Repeat pixels [..., H, W] down and across."""
    down, across = factors
    taller = images.repeat_interleave(down, -2)
    return taller.repeat_interleave(across, -1)


def strip(grids: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Arrange grids side by side, each under its caption."""
    font = _font(15)
    top = _line_height(font) + GAP
    width = sum(picture.width for picture in grids) + GAP * (len(grids) + 1)
    height = top + max(picture.height for picture in grids) + GAP

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    x = GAP
    for picture, caption in zip(grids, captions, strict=True):
        text = _fit(caption, picture.width, 0, font)
        centre = x + picture.width // 2
        draw.text((centre, GAP), text, INK, font, anchor="ma")
        sheet.paste(picture, (x, top))
        x += picture.width + GAP
    return sheet


def gif(
    frames: Sequence[Image.Image], out: Path, milliseconds: int = 500, comment: str = ""
) -> None:
    """Write an endless GIF; its last frame stays four times as long as the others.

    Args:
        comment: says who wrote it.
    """
    durations = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    # all frames of a GIF have one size
    width = max(frame.width for frame in frames)
    height = max(frame.height for frame in frames)
    first, *others = [_pad(frame, (width, height)) for frame in frames]
    buffer = io.BytesIO()
    first.save(
        buffer,
        save_all=True,
        append_images=others,
        duration=durations,
        loop=0,
        format="GIF",
        comment=comment.encode(),
    )
    write_bytes(out, buffer.getvalue())


def write_png(picture: Image.Image, file: Path, software: str = "") -> None:
    """Write a PNG atomically.

    Args:
        software: says who wrote it, in the entry of this name.
    """
    entries = PngInfo()
    if software:
        entries.add_text("Software", software)
    # Pillow's own errors of writing to a disk have neither a number nor a name
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=entries)
    write_bytes(file, buffer.getvalue())


def loss_curve(lines: Sequence[dict[str, float]], out: Path) -> None:
    """Plot training loss and learning rate over steps, as a PNG; of many lines also smoothed.

    Args:
        lines: of a run's log; those with `step`, `loss` and `lr` are plotted.
    """
    from matplotlib.figure import Figure

    lines = [line for line in lines if "loss" in line]
    steps = [int(line["step"]) for line in lines]
    losses = [line["loss"] for line in lines]

    figure = Figure(figsize=(8, 4), dpi=120)
    # room for labels of any usual length: to lay them out takes as long as to draw them
    figure.subplots_adjust(left=0.13, right=0.88, bottom=0.13, top=0.96)
    axis = figure.add_subplot(xlabel="step", ylabel="loss")
    marker = "o" if len(lines) == 1 else None  # a line of one point is invisible
    if len(lines) < SMOOTHED_FROM:
        axis.plot(steps, losses, color="#1f4e8c", linewidth=2, label="loss", marker=marker)
    else:
        axis.plot(steps, losses, color="#9db7d5", linewidth=1, label="loss")
        axis.plot(steps, smooth(losses), color="#1f4e8c", linewidth=2, label="loss, smoothed")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    _plot_lr(axis, steps, [line["lr"] for line in lines])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(out, buffer.getvalue())


def _plot_lr(axis: Any, steps: Sequence[int], rates: Sequence[float]) -> None:
    twin = axis.twinx()
    twin.plot(steps, rates, color="#c98b4b", linewidth=1, alpha=0.5)
    twin.set_ylabel("learning rate", color="#c98b4b", alpha=0.8)
    twin.tick_params(colors="#c98b4b")
    twin.set_ylim(bottom=0)
    twin.spines[["top", "right", "left"]].set_visible(False)


def smooth(values: Sequence[float]) -> list[float]:
    """Return exponential averages over about 1/30 of the values, and over three or more.

    There is no bias at the start.
    """
    # dividing by the sum of weights removes the bias, as in Adam
    keep = 1 - 1 / max(3.0, len(values) / 30)
    total = weight = 0.0
    out = []
    for value in values:
        total = keep * total + value
        weight = keep * weight + 1
        out.append(total / weight)
    return out


def _to_pil(image: torch.Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.cpu().numpy())


def _pad(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    sheet = Image.new("RGB", size, PAPER)
    sheet.paste(picture, (0, 0))
    return sheet


@cache
def _font(size: int) -> Any:
    # DejaVu Sans, which matplotlib ships, has accents, Greek and Cyrillic; Pillow's font has not
    from matplotlib import get_data_path

    fonts = Path(get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", size)


def _fitting_font(texts: Sequence[str], width: int) -> Any:
    """Return the largest readable font in which no line is wider than `width` pixels."""
    lines = [line for text in texts for line in text.splitlines()]
    for font in map(_font, range(14, 8, -1)):
        if _widest(lines, font) <= width:
            return font
    return _font(8)


def _label_font(labels: Sequence[str], width: int, height: int, size: int) -> Any:
    """Return the largest readable font up to `size` in which all labels fit unshortened."""
    for font in map(_font, range(size, 8, -1)):
        if all(_fits(label, width, height, font) for label in labels):
            return font
    return _font(min(size, 9))


def _line_height(font: Any) -> int:
    return math.ceil(font.getbbox("Ag")[3]) + GAP


def _text_height(texts: Sequence[str], font: Any) -> int:
    lines = (len(text.splitlines()) for text in texts)
    return _line_height(font) * max(lines, default=0)


def _widest(texts: Sequence[str], font: Any) -> int:
    lines = [line for text in texts for line in text.splitlines()]
    return math.ceil(max(map(font.getlength, lines), default=0))


def _fit_lines(text: str, width: int, font: Any) -> str:
    lines = (_fit(line, width, CAPTION_HEIGHT, font) for line in text.splitlines())
    return "\n".join(lines)


def _fit(text: str, width: int, height: int, font: Any) -> str:
    """Break `text` into lines within `width` x `height` pixels, shortened if it is too long."""

    # remove characters from the middle: captions of a set often begin alike
    def shortened(count: int) -> str:
        if count == 0:
            return text
        kept = len(text) - count
        start = text[: (kept + 1) // 2]
        end = text[len(text) - kept // 2 :]
        return f"{start}…{end}"

    def is_short(count: int) -> bool:
        return _fits(shortened(count), width, height, font)

    cut = bisect_left(range(len(text)), True, key=is_short)
    return "\n".join(_break_lines(shortened(cut), width, font))


def _fits(text: str, width: int, height: int, font: Any) -> bool:
    lines = _break_lines(text, width, font)
    most = max(1, height // _line_height(font))
    return len(lines) <= most and _widest(lines, font) <= width


def _break_lines(text: str, width: int, font: Any) -> list[str]:
    """Put words on lines of `width` pixels; a longer word gets its own line."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
