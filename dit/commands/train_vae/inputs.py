"""The images of a first stage and the folder that it goes to, checked before training."""

import sys

import numpy as np

from dit.commands.train_vae.report import CURVE, LOG
from dit.config import VaeConfig
from dit.data.counts import count_of
from dit.data.damage import describe_damage
from dit.data.images import Images
from dit.data.labels import Columns
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.latents.load import check_images
from dit.utils.files import LOCK
from dit.utils.outputs import require_outside, require_own_folder


def open_images(cfg: VaeConfig, ranks: Ranks) -> tuple[Images, np.ndarray]:
    """Return the images and the indices of those that can be read."""
    images = load_images(cfg.data, cfg.image_size, Columns(classes="none"))
    ranks.say(images.notes)
    return images, find_readable(images, cfg, ranks)


def find_readable(images: Images, cfg: VaeConfig, ranks: Ranks) -> np.ndarray:
    """Return the indices of the images that can be read, and print how many there are."""
    damaged = check_images(images, range(len(images)), ranks, cfg.skip_damaged)
    if damaged:
        print(f"left out: {describe_damage(images, damaged)}", file=sys.stderr)
    readable = np.delete(np.arange(len(images)), damaged)
    print(f"data  {cfg.data}: {count_of(len(readable), 'image')}", flush=True)
    return readable


def check_out(cfg: VaeConfig) -> None:
    """Refuse a folder inside the data, and one with files other than a stopped training's."""
    require_outside(cfg.out, cfg.data)
    # a stopped training leaves these beside its lock; a finished one is not replaced
    leftovers = (LOG, CURVE) if (cfg.out / LOCK).is_file() else ()
    require_own_folder(cfg.out, LOCK, "a stopped dit train-vae", False, leftovers)
