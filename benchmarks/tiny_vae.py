"""Train the bundled autoencoder `tiny`, and measure an autoencoder on images not trained on.

    python -m benchmarks.tiny_vae train --out data/tiny-vae
    python -m benchmarks.tiny_vae measure --vae tiny

`train` makes its images first (see tiny_images.py), and then runs `dit train-vae`, which it prints.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from benchmarks.image_sets import make
from benchmarks.tiny_images import SIDE, make_images
from dit.cli import main as dit
from dit.data.images import Images
from dit.data.sources import load_images
from dit.encoders.autoencoder import WEIGHTS, Autoencoder, load_autoencoder
from dit.encoders.psnr import reconstruct
from dit.utils.files import write_bytes

FLAGS = (
    "--kind kl --channels 16 32 64 --kl-weight 1e-4 --steps 7000 --batch-size 16 --lr 3e-3 "
    "--shift 0 --held-out 0.01"
)
"""Flags of `dit train-vae`. The crops have all positions already: none are shifted."""
SEED = 0


# -- training --------------------------------------------------------------------------------------


def train(out: Path) -> int:
    """Train on the images of tiny_images.py; return the exit code."""
    images = make_images()
    argv = ["train-vae", "--data", str(images), "--image-size", str(SIDE), *FLAGS.split()]
    argv += ["--out", str(out)]
    print("dit", *argv, flush=True)
    code = dit(argv)
    if code == 0:
        halve(out / WEIGHTS)
    return code


def halve(weights: Path) -> None:
    """Store weights in half precision, in half the space; they are read as float32."""
    tensors = {name: tensor.half() for name, tensor in load_file(weights).items()}
    write_bytes(weights, to_bytes(tensors, {"format": "pt"}))


# -- measurement -----------------------------------------------------------------------------------


def emoji(name: str) -> Images:
    """Return a set of emoji on white, at 64 px."""
    return load_images(str(make(name)), 64)


def photo_crops() -> Tensor:
    """Return 400 crops of scikit-learn's two photos at all scales, uint8 [400, 3, 64, 64]."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(SEED)
    crops = []
    for number in range(400):
        photo = photos[number % 2]
        side = round(math.exp(rng.uniform(math.log(64), math.log(427))))
        left = int(rng.integers(photo.width - side + 1))
        top = int(rng.integers(photo.height - side + 1))
        crop = photo.crop((left, top, left + side, top + side))
        crops.append(np.asarray(crop.resize((64, 64), Image.Resampling.LANCZOS)))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


UNSEEN: dict[str, Callable[[], Any]] = {
    "emoji-64": partial(emoji, "emoji-64"),
    "twitter-64": partial(emoji, "twitter-64"),
    "photos": photo_crops,
}


def measure(autoencoder: Autoencoder, images: Any) -> float:
    """Return the PSNR in dB of all reconstructions together."""
    errors = []
    for begin in range(0, len(images), 64):
        batch = torch.stack([images[i] for i in range(begin, min(begin + 64, len(images)))])
        output = reconstruct(autoencoder, autoencoder.encode(batch))
        errors.append(((output.float() - batch.float()) / 255).square().mean((1, 2, 3)))
    return float(-10 * torch.cat(errors).mean().log10())


def main() -> int:
    """Train, or measure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trained = commands.add_parser("train", help="make the images and train on them")
    trained.add_argument("--out", type=Path, required=True, help="new folder of the autoencoder")
    measured = commands.add_parser("measure", help="print PSNRs on images not trained on")
    measured.add_argument("--vae", default="tiny", help="as in dit train")
    args = parser.parse_args()
    if args.command == "train":
        return train(args.out)

    autoencoder = load_autoencoder(args.vae)
    for name, images in UNSEEN.items():
        print(f"{name}: {measure(autoencoder, images()):.1f} dB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
