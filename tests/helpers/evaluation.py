"""Random images and files of them, for tests of the evaluation."""

import numpy as np
import torch
from PIL import Image

CPU = torch.device("cpu")


def random_pixels(count=4, height=8, width=8, seed=0):
    """Return [N, H, W, 3] uint8."""
    shape = (count, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_images(folder, images, names=None):
    """Write images [N, H, W, 3] as PNG files; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / (names[i] if names else f"{i:06d}.png"))
    return folder


class Bomb:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
