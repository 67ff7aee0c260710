"""The images of a first stage: split, order and augmentation."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dit.commands.train_vae.networks import latent_sides
from dit.config import VaeConfig
from dit.data.image_files import reading_threads
from dit.data.images import Images
from dit.data.sample_order import batch_indices, generator
from dit.errors import UserError

MAX_HELD_OUT = 5000  # images


def split(cfg: VaeConfig, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random indices of the images to train on, and of those held out."""
    if size < 3:
        raise UserError(
            f"{size} images in --data {cfg.data}", "3 or more, for 2 are held out", "add images"
        )
    wanted = min(MAX_HELD_OUT, round(cfg.held_out * size))
    held_out = min(size - 1, max(2, wanted))
    order = np.random.default_rng(cfg.seed).permutation(size)
    return order[held_out:], order[:held_out]


def batches(
    images: Images, indices: np.ndarray, cfg: VaeConfig, start: int = 0
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield pixels [B, 3, H, W] in [-1, 1] and standard normal noise [B, C, h, w], without end.

    What a step gets is a function of seed and step, so that a training continues as if it had never
    been stopped.

    Args:
        start: steps done before.
    """
    latents = (cfg.batch_size, cfg.latent_channels, *latent_sides(cfg))
    with reading_threads() as readers, ThreadPoolExecutor(1) as ahead:

        def prepare(step: int) -> tuple[Tensor, Tensor]:
            random = generator(cfg.seed, step)
            chosen = indices[batch_indices(step, len(indices), cfg.batch_size, cfg.seed)]
            pixels = list(readers.map(images.__getitem__, chosen.tolist()))
            x = to_unit(torch.stack(pixels))
            x = random_shift(x, cfg.shift, random)
            return x, torch.randn(latents, generator=random)

        following = ahead.submit(prepare, start)
        for step in count(start + 1):
            current = following.result()
            following = ahead.submit(prepare, step)
            yield current


def to_unit(images: Tensor) -> Tensor:
    """Scale uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def random_shift(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Move each image of [B, C, H, W] by up to `limit` pixels both ways; edges are repeated."""
    b, _, height, width = x.shape
    padded = F.pad(x, (limit,) * 4, mode="replicate")
    pixels = padded.permute(0, 2, 3, 1)
    down, right = torch.randint(2 * limit + 1, (2, b, 1), generator=generator)
    rows = down + torch.arange(height)  # [B, H]
    columns = right + torch.arange(width)  # [B, W]
    images = torch.arange(b)[:, None, None]
    shifted = pixels[images, rows[:, :, None], columns[:, None]]
    return shifted.movedim(3, 1)
