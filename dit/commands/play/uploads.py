"""What a visitor gives the page: image files and drawn masks, checked and kept for commands."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dit.errors import UserError
from dit.sampling.edit import read_image
from dit.sampling.load import LoadedRun
from dit.utils.outputs import create_folder, signature
from dit.utils.pictures import write_png

MOST_BYTES = 20 * 2**20  # of an upload
COVERED = 0.5  # of a pixel's area, from which on it is painted


def read_upload(file: str, run: LoadedRun) -> Tensor:
    """Return an uploaded image cropped to the run's size, uint8 [3, H, W].

    Raises:
        UserError: It is too large, or no image.
    """
    path = Path(file)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UserError(
            f"{path.name} takes {size / 2**20:.0f} MiB",
            f"at most {MOST_BYTES / 2**20:.0f} MiB",
            "make it smaller",
        )
    try:
        return read_image(path, run, "the image")
    except UserError as error:
        # where the server keeps uploads is no news for the visitor
        given = error.given.replace(str(path), path.name)
        raise UserError(given, error.expected, "choose another file") from error


def painted(drawing: dict[str, Any] | None, size: tuple[int, int]) -> Tensor:
    """Return where a visitor has drawn, bool [H, W].

    Args:
        drawing: of gradio's ImageEditor: `layers` are RGBA arrays [h, w, 4], an enlarged image.
        size: H and W of the image.
    """
    layers = [layer[..., 3] for layer in (drawing or {}).get("layers") or []]
    paint = torch.zeros(size, dtype=torch.bool)
    for alpha in layers:
        drawn = torch.from_numpy(np.array(alpha > 0, dtype=np.float32))
        paint |= F.interpolate(drawn[None, None], size, mode="area")[0, 0] >= COVERED
    if not paint.any():
        raise UserError(
            "nothing is drawn on the image", "a drawn part to paint anew", "draw with the brush"
        )
    return paint


def keep(run: LoadedRun, pixels: Tensor) -> Path:
    """Write an image, uint8 [3, H, W], in the run's edits/, so that a command can name it."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    digits = hashlib.sha256(image.tobytes()).hexdigest()[:10]
    folder = run.home / "edits" / "inputs"
    create_folder(folder)
    file = folder / f"{digits}.png"
    write_png(image, file, signature("edit"))
    return file


def mask_pixels(paint: Tensor) -> Tensor:
    """Return a mask bool [H, W] as white on black, uint8 [3, H, W]."""
    return paint.to(torch.uint8).mul(255).expand(3, -1, -1)


def to_pil(pixels: Tensor) -> Image.Image:
    """Return an image uint8 [3, H, W] for the page."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
