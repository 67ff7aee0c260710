"""Pictures of a run: labelled grids, the strip and film of how a picture forms, the loss curve."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, PALE, MARK = (255, 255, 255), (40, 44, 52), (120, 126, 138), (64, 224, 208)
GAP, BREAK = 4, 10  # pixels between cells, and more between groups of rows
WIDEST_NAME = 160  # pixels of a row's name, where its images are small
CAPTION_HEIGHT = 60  # most pixels of a caption below an image
HEAT = 0.8  # how much of a map of weights hides the image below it

Item = TypeVar("Item")


def fitting_scale(size: int, target: int = 64) -> int:
    """The integer enlargement that brings images of `size` pixels nearest to `target` from below."""
    return max(1, target // size)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spaced."""
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
    """Images in rows, each enlarged `scale` times without smoothing.

    Args:
        images: [N, 3, H, W] uint8, filled in row by row.
        labels: one for each row (written to its left), or one for each image (written below it).
        headings: one for each column, of one line or several.
        together: so many rows at a time stand apart from the next, the first of them named in black; 0: all alike.
    """
    rows = math.ceil(len(images) / columns)
    by_row = labels is not None and len(labels) == rows
    assert labels is None or by_row or len(labels) == len(images), (
        "one label a row, or one an image"
    )
    height, width = images.shape[-2] * scale, images.shape[-1] * scale
    small = _fitting_font(headings or [], width)
    room = (max(2 * width, WIDEST_NAME), height) if by_row else (width, CAPTION_HEIGHT)
    font = _label_font(labels or [], *room, max(11, min(16, height // 4)))
    texts = [_fit(label, *room, font) for label in labels or []]
    names = texts if by_row else []
    left = GAP + (_widest(names, font) + 2 * GAP if names else 0)
    heads = [
        "\n".join(_fit(line, width, CAPTION_HEIGHT, small) for line in h.splitlines())
        for h in headings or []
    ]
    top = GAP + max((_line_height(small) * len(head.splitlines()) for head in heads), default=0)
    caption = (
        0
        if by_row
        else _line_height(font) * max((len(text.splitlines()) for text in texts), default=0)
    )
    xs = [left + column * (width + GAP) for column in range(columns)]
    ys = [
        top + row * (height + caption + GAP) + row // (together or rows) * BREAK
        for row in range(rows)
    ]
    sheet = Image.new("RGB", (xs[-1] + width + GAP, ys[-1] + height + caption + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = xs[i % columns], ys[i // columns]
        sheet.paste(_picture(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
        if labels and caption:
            draw.text(
                (x + width // 2, y + height), texts[i], INK, font, anchor="ma", align="center"
            )
    for row, name in enumerate(names):
        ink = PALE if together and row % together else INK
        draw.text(
            (left - 2 * GAP, ys[row] + height // 2), name, ink, font, anchor="rm", align="right"
        )
    for x, heading in zip(xs, heads, strict=False):
        draw.multiline_text(
            (x + width // 2, GAP), heading, INK, small, anchor="ma", align="center", spacing=GAP
        )
    return sheet


def heat(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weights of tokens as colours over the gray images: each image's smallest is black, its largest is brightest.

    Args:
        images: [N, 3, H, W] uint8.
        weights: [N, h, w], where h divides H and w divides W.

    Returns:
        uint8 [N, 3, H, W].
    """
    from matplotlib import colormaps

    weights = weights.float().cpu()
    low, high = weights.amin((1, 2), keepdim=True), weights.amax((1, 2), keepdim=True)
    weights = (weights - low) / (high - low).clamp(min=torch.finfo().tiny)
    colours = (
        torch.from_numpy(colormaps["inferno"](weights.numpy())[..., :3]).permute(0, 3, 1, 2) * 255
    )
    factors = images.shape[-2] // weights.shape[1], images.shape[-1] // weights.shape[2]
    gray = images.float().mean(1, keepdim=True)
    return (gray * (1 - HEAT) + enlarge(colours, factors) * HEAT).round().to(torch.uint8)


def outline(images: torch.Tensor, cell: tuple[int, int], cells: tuple[int, int]) -> torch.Tensor:
    """The images [N, 3, H, W] with a frame around one of their `cells`, rows and columns."""
    tall, wide = images.shape[-2] // cells[0], images.shape[-1] // cells[1]
    thick = max(1, min(3, tall // 3, wide // 3))
    (top, bottom), (left, right) = (
        (i * size, (i + 1) * size) for i, size in zip(cell, (tall, wide), strict=True)
    )
    frame = torch.zeros(images.shape[-2:], dtype=torch.bool)
    frame[top:bottom, left:right] = True
    frame[top + thick : bottom - thick, left + thick : right - thick] = False
    return torch.where(frame, torch.tensor(MARK, dtype=torch.uint8).view(3, 1, 1), images)


def enlarge(images: torch.Tensor, factors: tuple[int, int]) -> torch.Tensor:
    """Pixels [..., H, W] repeated down and across."""
    return images.repeat_interleave(factors[0], -2).repeat_interleave(factors[1], -1)


def strip(grids: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Grids side by side, first to last, each under its caption."""
    font = _font(15)
    top = _line_height(font) + GAP
    width = sum(g.width for g in grids) + GAP * (len(grids) + 1)
    sheet = Image.new("RGB", (width, top + max(g.height for g in grids) + GAP), PAPER)
    draw, x = ImageDraw.Draw(sheet), GAP
    for picture, caption in zip(grids, captions, strict=True):
        draw.text(
            (x + picture.width // 2, GAP),
            _fit(caption, picture.width, 0, font),
            INK,
            font,
            anchor="ma",
        )
        sheet.paste(picture, (x, top))
        x += picture.width + GAP
    return sheet


def gif(frames: Sequence[Image.Image], out: Path, milliseconds: int = 500) -> None:
    """An endless film of `frames`; the last one stays for four times as long."""
    durations = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    size = (max(f.width for f in frames), max(f.height for f in frames))
    padded = [_pad(f, size) for f in frames]
    padded[0].save(
        out, save_all=True, append_images=padded[1:], duration=durations, loop=0, format="GIF"
    )


def loss_curve(lines: Sequence[dict[str, float]], out: Path) -> None:
    """Draw training loss (raw and smoothed) over steps, with the learning rate behind it.

    Args:
        lines: of a run's log; those with `step`, `loss` and `lr` are drawn.
        out: the PNG to write.
    """
    from matplotlib.figure import Figure

    lines = [line for line in lines if "loss" in line]
    steps, losses = [int(line["step"]) for line in lines], [line["loss"] for line in lines]
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axis = figure.add_subplot(xlabel="step", ylabel="loss")
    marker = "o" if len(lines) == 1 else None  # a line of one point would not be seen
    axis.plot(steps, losses, color="#9db7d5", linewidth=1, label="loss", marker=marker)
    axis.plot(steps, smooth(losses), color="#1f4e8c", linewidth=2, label="smoothed", marker=marker)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    _draw_lr(axis, steps, [line["lr"] for line in lines])
    figure.savefig(out)


def _draw_lr(axis: Any, steps: Sequence[int], rates: Sequence[float]) -> None:
    behind = axis.twinx()
    behind.plot(steps, rates, color="#c98b4b", linewidth=1, alpha=0.5)
    behind.set_ylabel("learning rate", color="#c98b4b", alpha=0.8)
    behind.tick_params(colors="#c98b4b")
    behind.set_ylim(bottom=0)
    behind.spines[["top", "right", "left"]].set_visible(False)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential average over about a thirtieth of the values, without bias at the start."""
    keep = 1 - 1 / max(1.0, len(values) / 30)
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


def _picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _pad(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    sheet = Image.new("RGB", size, PAPER)
    sheet.paste(picture, (0, 0))
    return sheet


@cache
def _font(size: int) -> Any:
    """DejaVu Sans, which has accents, Greek and Cyrillic and comes with matplotlib; Pillow's own has English alone."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _fitting_font(texts: Sequence[str], width: int) -> Any:
    """The largest font in which every line of the texts is at most `width` pixels wide, if it can be read at all."""
    lines = [line for text in texts for line in text.splitlines()]
    fitting = (
        size for size in range(14, 8, -1) if not lines or _widest(lines, _font(size)) <= width
    )
    return _font(next(fitting, 8))


def _label_font(labels: Sequence[str], width: int, height: int, size: int) -> Any:
    """The largest font up to `size` in which all labels are whole, if it can be read at all."""
    fitting = (
        font
        for font in map(_font, range(size, 8, -1))
        if all(_holds(t, width, height, font) for t in labels)
    )
    return next(fitting, _font(min(size, 9)))


def _line_height(font: Any) -> int:
    return math.ceil(font.getbbox("Ag")[3]) + GAP


def _widest(texts: Sequence[str], font: Any) -> int:
    return math.ceil(
        max((font.getlength(line) for text in texts for line in text.splitlines()), default=0)
    )


def _fit(text: str, width: int, height: int, font: Any) -> str:
    """`text` in lines that `width` x `height` pixels hold, or one; if it is too long its middle goes."""

    def without(count: int) -> str:  # characters of the middle: captions of a set begin alike
        kept = len(text) - count
        return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}" if count else text

    cut = bisect_left(
        range(len(text)), True, key=lambda count: _holds(without(count), width, height, font)
    )
    return "\n".join(_lines(without(cut), width, font))


def _holds(text: str, width: int, height: int, font: Any) -> bool:
    lines = _lines(text, width, font)
    return _widest(lines, font) <= width and len(lines) <= max(1, height // _line_height(font))


def _lines(text: str, width: int, font: Any) -> list[str]:
    """Words on lines of `width` pixels, but for longer ones."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
