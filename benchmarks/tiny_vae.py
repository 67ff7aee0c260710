"""Train the bundled autoencoder `tiny`, and measure an autoencoder on images not trained on.

    python -m benchmarks.tiny_vae train --out data/tiny-vae --minutes 25
    python -m benchmarks.tiny_vae measure --vae tiny

`train` makes its images first: see tiny_images.py. The learning rate follows the clock, so that the
training ends in time on a machine with other work. The loss is that of `dit train-vae --kind kl`.

The network starts near a linear one: every residual block starts as the identity. With diffusers'
usual start, the first steps learn little but the mean colours: 13.5 dB after 220 steps of 8 crops,
against 18.2 dB.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.image_sets import make
from benchmarks.tiny_images import SIDE, make_images
from dit.commands.train_vae.networks import save
from dit.commands.train_vae.quality import latent_statistics, reconstruct
from dit.data.images import Images
from dit.data.sources import load_images
from dit.encoders.autoencoder import Autoencoder, load_autoencoder

CHANNELS, LATENT_CHANNELS, GROUPS = (16, 32, 64), 4, 2
LR, BATCH, KL_WEIGHT = 3e-3, 8, 1e-4
FOR_STATISTICS = 2000  # images
WARMUP = 0.05  # of the time
SEED = 0
CPU = torch.device("cpu")


# -- training --------------------------------------------------------------------------------------


def create_network() -> Any:
    """Create diffusers' AutoencoderKL, untrained, nearly linear."""
    from diffusers import AutoencoderKL

    torch.manual_seed(SEED)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        # groups of 8 channels or more: normalised groups of 2 lose the colours of plain areas
        norm_num_groups=GROUPS,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            gain = 1.0 if "upsamplers" in name else math.sqrt(2)
            nn.init.orthogonal_(module.weight, gain)
            nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)  # the block is the identity

    with torch.no_grad():
        # little noise on the first latents
        network.quant_conv.weight[LATENT_CHANNELS:] *= 0.1
        network.quant_conv.bias[LATENT_CHANNELS:] = -6
    return network


def schedule(done: float) -> float:
    """Return the share of the peak learning rate when a share of the time is `done`."""
    if done < WARMUP:
        return max(done / WARMUP, 0.01)
    cosine = math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))
    return max((1 + cosine) / 2, 0.01)


def train(pixels: Tensor, seconds: float) -> tuple[Any, int]:
    """Train on uint8 [N, 3, H, W] for a time; return the network and the steps it took."""
    network = create_network().train()
    optimizer = torch.optim.AdamW(network.parameters(), LR, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator().manual_seed(SEED)
    start, steps = time.monotonic(), 0
    with tqdm(unit="img") as bar:
        while (done := (time.monotonic() - start) / seconds) < 1:
            optimizer.param_groups[0]["lr"] = LR * schedule(done)
            chosen = torch.randint(len(pixels), (BATCH,), generator=generator)
            x = pixels[chosen].float() / 127.5 - 1
            if torch.rand((), generator=generator) < 0.5:
                x = x.flip(-1)

            loss = _loss(network, x, generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            steps += 1
            bar.update(BATCH)
    return network.eval(), steps


def _loss(network: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = network.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator)
        output = network.decode(mean + (logvar / 2).exp() * noise).sample.float()
    kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    return F.l1_loss(output, x) + KL_WEIGHT * kl


def train_and_save(out: Path, minutes: float) -> None:
    """Train on the images of tiny_images.py, and save the network with its latents' statistics."""
    images = load_images(str(make_images()), SIDE)
    pixels = torch.stack([images[i] for i in range(len(images))])
    network, steps = train(pixels, 60 * minutes)
    some = np.random.default_rng(SEED).permutation(len(images))[:FOR_STATISTICS]
    mean, std = latent_statistics(network, images, some, 64, CPU)
    out.mkdir(parents=True, exist_ok=True)
    # half precision halves the file; it is read as float32
    save(network.half(), out, mean, std)
    print(f"{steps:,} steps of {BATCH} crops; the autoencoder is in {out}")


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


def main() -> None:
    """Train, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trained = commands.add_parser("train", help="make the images and train on them")
    trained.add_argument("--out", type=Path, required=True, help="folder of the autoencoder")
    trained.add_argument("--minutes", type=float, default=25, help="time to train")
    measured = commands.add_parser("measure", help="print PSNRs on images not trained on")
    measured.add_argument("--vae", default="tiny", help="as in dit train")
    args = parser.parse_args()
    if args.command == "train":
        train_and_save(args.out, args.minutes)
        return
    autoencoder = load_autoencoder(args.vae)
    for name, images in UNSEEN.items():
        print(f"{name}: {measure(autoencoder, images()):.1f} dB")


if __name__ == "__main__":
    main()
