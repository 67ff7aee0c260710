"""The images of a first stage, checked before training."""

import sys

import numpy as np
import torch
from torch import Tensor

from dit.config import VaeConfig
from dit.data.counts import count_of
from dit.data.damage import describe_damage
from dit.data.images import ImageFiles, Images
from dit.data.labels import Columns
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.latents.load import check_images

SHOWN = 10  # held-out images in a picture


def open_images(cfg: VaeConfig, ranks: Ranks) -> tuple[Images, np.ndarray]:
    """Return the images and the indices of those that can be read."""
    images = load_images(cfg.data, cfg.image_size, Columns(classes="none"))
    ranks.say(images.notes)
    stamp_of(images)  # before the check: a file that is replaced meanwhile has another stamp
    return images, find_readable(images, cfg, ranks)


def stamp_of(images: Images) -> str:
    """Return the first stamp of images in files, "" of others."""
    return images.first_stamp if isinstance(images, ImageFiles) else ""


def find_readable(images: Images, cfg: VaeConfig, ranks: Ranks) -> np.ndarray:
    """Return the indices of the images that can be read, and print how many there are."""
    damaged = check_images(images, range(len(images)), ranks, cfg.skip_damaged)
    if damaged:
        print(f"left out: {describe_damage(images, damaged)}", file=sys.stderr)
    readable = np.delete(np.arange(len(images)), damaged)
    print(f"data  {cfg.data}: {count_of(len(readable), 'image')}", flush=True)
    return readable


def load_shown(images: Images, held_out: np.ndarray) -> Tensor:
    """Return the held-out images of the pictures, uint8 [B, 3, H, W]."""
    return torch.stack([images[int(i)] for i in held_out[:SHOWN]])
