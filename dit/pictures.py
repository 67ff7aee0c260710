"""Pictures of a run: labelled grids, the strip and film of how a picture forms, the loss curve."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (255, 255, 255), (40, 44, 52)
GAP = 4  # pixels between cells

Item = TypeVar("Item")


def fitting_scale(size: int, target: int = 64) -> int:
    """The integer enlargement that brings images of `size` pixels nearest to `target` from below."""
    return max(1, target // size)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spaced."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def grid(images: torch.Tensor, labels: Sequence[str] | None, columns: int, scale: int = 1) -> Image.Image:
    """Images in rows, each enlarged `scale` times without smoothing.

    Args:
        images: [N, 3, H, W] uint8, filled in row by row.
        labels: one for each row (written to its left), or one for each image (written below it).
    """
    rows = math.ceil(len(images) / columns)
    by_row = labels is not None and len(labels) == rows
    assert labels is None or by_row or len(labels) == len(images), "one label a row, or one an image"
    height, width = images.shape[-2] * scale, images.shape[-1] * scale
    font = ImageFont.load_default(size=max(11, min(18, height // 4)))
    left = GAP + (_widest(labels, font) + 2 * GAP if labels and by_row else 0)
    caption = 0 if by_row or not labels else _line_height(font)
    sheet = Image.new("RGB", (left + columns * (width + GAP), GAP + rows * (height + caption + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = left + i % columns * (width + GAP), GAP + i // columns * (height + caption + GAP)
        sheet.paste(_picture(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
        if labels and caption:
            draw.text((x + width // 2, y + height), _fit(labels[i], width, font), INK, font, anchor="ma")
    if labels and by_row:
        for r, label in enumerate(labels):
            draw.text((left - 2 * GAP, GAP + r * (height + GAP) + height // 2), label, INK, font, anchor="rm")
    return sheet


def strip(grids: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Grids side by side, first to last, each under its caption."""
    font = ImageFont.load_default(size=16)
    top = _line_height(font) + GAP
    width = sum(g.width for g in grids) + GAP * (len(grids) + 1)
    sheet = Image.new("RGB", (width, top + max(g.height for g in grids) + GAP), PAPER)
    draw, x = ImageDraw.Draw(sheet), GAP
    for picture, caption in zip(grids, captions, strict=True):
        draw.text((x + picture.width // 2, GAP), _fit(caption, picture.width, font), INK, font, anchor="ma")
        sheet.paste(picture, (x, top))
        x += picture.width + GAP
    return sheet


def gif(frames: Sequence[Image.Image], out: Path, milliseconds: int = 500) -> None:
    """An endless film of `frames`; the last one stays for four times as long."""
    durations = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    size = (max(f.width for f in frames), max(f.height for f in frames))
    padded = [_pad(f, size) for f in frames]
    padded[0].save(out, save_all=True, append_images=padded[1:], duration=durations, loop=0)


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
    axis.plot(steps, losses, color="#9db7d5", linewidth=1, label="loss")
    axis.plot(steps, _smooth(losses), color="#1f4e8c", linewidth=2, label="smoothed")
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


def _smooth(values: Sequence[float]) -> list[float]:
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


def _line_height(font: Any) -> int:
    return math.ceil(font.getbbox("Ag")[3]) + GAP


def _widest(labels: Sequence[str], font: Any) -> int:
    return math.ceil(max(font.getlength(label) for label in labels))


def _fit(text: str, width: int, font: Any) -> str:
    """`text`, shortened to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
