"""Train a KL autoencoder, as the bundled one was: python -m dit.latents.first_stage --out FOLDER"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dit.data.images import load_images
from dit.hardware import autocast
from dit.latents.store import MomentSums


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig:
    """Train a small KL autoencoder and save it in diffusers' layout."""

    out: Path
    """Folder for config.json and the weights."""
    data: str = "digits"
    """`digits`, or a folder with one subfolder of images per class; it has to fit in memory."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    channels: tuple[int, ...] = (16, 32, 32)
    """Width at each resolution; each but the last halves the sides."""
    latent_channels: int = 4
    """Channels of a latent."""
    kl_weight: float = 1e-3
    """Weight of the KL divergence per latent value: larger is smoother, smaller is sharper."""
    steps: int = 1200
    """Optimizer steps."""
    batch_size: int = 32
    """Images per step."""
    lr: float = 4e-3
    """Peak learning rate of AdamW, reached after a tenth of the steps; a cosine to zero follows."""
    shift: int = 2
    """Augmentation: random shifts of up to this many pixels."""
    held_out: float = 0.1
    """Share of the images kept for the measurement of quality."""
    precision: str = "auto"
    """auto, fp32 or bf16."""
    seed: int = 0
    """Seed of weights, order, shifts and noise."""


class Quality(NamedTuple):
    """How well held-out images survive: PSNR in dB, for z at the posterior's mean, drawn, and with 0.1 deviations
    of noise on top; and the posterior's deviation as a share of the latents'."""

    psnr_mean: float
    psnr_drawn: float
    psnr_noisy: float
    posterior_share: float


def create_network(cfg: FirstStageConfig) -> Any:
    """An untrained AutoencoderKL without attention, which small images do not need."""
    from diffusers import AutoencoderKL

    torch.manual_seed(cfg.seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(cfg.channels),
        up_block_types=("UpDecoderBlock2D",) * len(cfg.channels),
        block_out_channels=cfg.channels,
        latent_channels=cfg.latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=cfg.image_size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def split(cfg: FirstStageConfig) -> tuple[Tensor, Tensor]:
    """Training and held-out images, uint8 [N, 3, S, S], split at random by the seed."""
    images = load_images(cfg.data, cfg.image_size)
    order = np.random.default_rng(cfg.seed).permutation(len(images))
    pixels = torch.stack([images[int(i)] for i in order])
    held_out = max(1, round(cfg.held_out * len(images)))
    return pixels[held_out:], pixels[:held_out]


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def random_shift(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image of [B, C, S, S] by up to `most` pixels both ways; edges are repeated."""
    b, _, s, _ = x.shape
    padded = F.pad(x, (most,) * 4, mode="replicate")
    rows, columns = torch.randint(2 * most + 1, (2, b, 1), generator=generator) + torch.arange(s)  # [B, S] each
    return padded.permute(0, 2, 3, 1)[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None]].movedim(3, 1)


def kl_loss(network: Any, x: Tensor, kl_weight: float, generator: torch.Generator) -> Tensor:
    """Absolute error per pixel + kl_weight * KL(posterior || standard normal) per latent value (1312.6114)."""
    posterior = network.encode(x).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    z = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator).to(mean)
    kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    return F.l1_loss(network.decode(z).sample.float(), x) + kl_weight * kl


def fit(network: Any, images: Tensor, cfg: FirstStageConfig) -> None:
    """Train in place on uint8 images [N, 3, S, S], on the network's device."""
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(cfg.seed)
    optimizer = torch.optim.AdamW(network.parameters(), cfg.lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.lr, cfg.steps, pct_start=0.1, cycle_momentum=False)
    network.train()
    with tqdm(total=cfg.steps * cfg.batch_size, unit="img") as bar:
        for _ in range(cfg.steps):
            batch = images[torch.randint(len(images), (cfg.batch_size,), generator=generator)]
            x = random_shift(to_unit(batch), cfg.shift, generator).to(device)
            with autocast(device, cfg.precision):
                loss = kl_loss(network, x, cfg.kl_weight, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update(cfg.batch_size)
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    network.eval()


@torch.no_grad()
def encode(network: Any, images: Tensor, batch_size: int) -> Tensor:
    """Moments of z, mean then deviation, [N, 2C, h, w] of uint8 images [N, 3, S, S]."""
    device = next(network.parameters()).device
    parts = [network.encode(to_unit(part).to(device)).latent_dist for part in images.split(batch_size)]
    return torch.cat([torch.cat([p.mean, p.std], dim=1).cpu() for p in parts])


@torch.no_grad()
def measure(network: Any, images: Tensor, cfg: FirstStageConfig) -> Quality:
    """The quality of reconstruction of uint8 images [N, 3, S, S] that training did not see."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    device = next(network.parameters()).device
    moments = encode(network, images, cfg.batch_size)
    mean, std = moments.chunk(2, dim=1)
    spread = MomentSums.of(moments).statistics()[1][:, None, None]
    generator = torch.Generator().manual_seed(cfg.seed)
    drawn = mean + std * torch.randn(mean.shape, generator=generator)
    noisy = drawn + 0.1 * spread * torch.randn(mean.shape, generator=generator)

    def psnr(z: Tensor) -> float:
        output = torch.cat([network.decode(part.to(device)).sample.cpu() for part in z.split(cfg.batch_size)])
        return float(peak_signal_noise_ratio(output.clamp(-1, 1), to_unit(images), data_range=2.0))

    return Quality(psnr(mean), psnr(drawn), psnr(noisy), float((std / spread).mean()))


def train_first_stage(cfg: FirstStageConfig) -> Quality:
    """Train, measure on held-out images, and save with the statistics that bring latents to unit variance."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, held_out = split(cfg)
    network = create_network(cfg).to(device)
    start = time.monotonic()
    fit(network, training, cfg)
    quality = measure(network, held_out, cfg)
    centre, spread = MomentSums.of(encode(network, training, cfg.batch_size)).statistics()
    network.register_to_config(latents_mean=centre.tolist(), latents_std=spread.tolist())
    network.save_pretrained(cfg.out, safe_serialization=True)
    print(
        f"{sum(p.numel() for p in network.parameters()):,} parameters, {time.monotonic() - start:.0f} s; held-out PSNR "
        f"{quality.psnr_mean:.1f} dB, from drawn latents {quality.psnr_drawn:.1f} dB, with noise of 0.1 deviations "
        f"{quality.psnr_noisy:.1f} dB; posterior deviation {quality.posterior_share:.3f} of the latents'"
    )
    return quality


if __name__ == "__main__":
    import tyro

    train_first_stage(tyro.cli(FirstStageConfig))
