"""Reconstruction quality of a first stage on held-out images, and statistics of its latents."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit.commands.train_vae.batches import to_unit
from dit.commands.train_vae.codebook import count_usage, nearest_entries, perplexity
from dit.config import VaeConfig
from dit.data.images import Images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder, VQCodec, build_codec
from dit.encoders.psnr import reconstruct
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.load import DIGITS_CNN
from dit.evaluation.metrics.compute import score_names
from dit.evaluation.metrics.frechet import fit, frechet
from dit.evaluation.references import choose_extractors
from dit.latents.moments import MomentSums, decode_batches
from dit.utils.image_size import sides

SSIM_WINDOW = 11  # pixels
NOISE = 0.1  # in deviations of the latents: measures how robust the decoder is

# By name; a text is the reason why there is no number. Higher is better for PSNR (dB) and SSIM,
# lower for rFD.
Scores = dict[str, float | str]
Pairs = Iterator[tuple[Tensor, Tensor]]  # uint8 images [B, 3, H, W], moments [B, 2C, h, w]


def choose_extractor(cfg: VaeConfig, ranks: Ranks) -> Extractor:
    """Return the feature network of rFD."""
    default = DIGITS_CNN if cfg.data == "digits" else None
    weights = [cfg.weights] if cfg.weights else []
    return choose_extractors([cfg.extractor], weights, default, ranks)[0]


@torch.no_grad()
def latent_statistics(
    network: Any, images: Images, indices: np.ndarray, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Freeze a network; return mean [C] and deviation [C] of z over the images at `indices`."""
    codec = build_codec(network)

    def sums_of(batch: Tensor) -> MomentSums:
        pixels = to_unit(batch).to(device)
        moments = torch.cat(codec.posterior(pixels), dim=1)
        return MomentSums.of(moments.cpu())

    batches = decode_batches(images, indices, batch_size)
    total = MomentSums.total(map(sums_of, batches))
    return total.statistics()


def freeze_copy(network: Any, cfg: VaeConfig, device: torch.device) -> Autoencoder:
    """Return a frozen copy of a network in training, whose latents are not normalised."""
    codec = build_codec(deepcopy(network))
    channels = cfg.codebook_dim or cfg.latent_channels
    one = torch.ones(channels, 1, 1, device=device)
    factor = 2 ** (len(cfg.channels) - 1)
    return Autoencoder(
        name="", codec=codec, factor=factor, channels=channels, shift=0 * one, scale=one
    )


def measure(
    autoencoder: Autoencoder,
    images: Images,
    indices: np.ndarray,
    extractor: Extractor,
    batch_size: int,
    seed: int,
) -> Scores:
    """Score reconstructions, as uint8, of the images at `indices`, at least 2.

    Args:
        extractor: the features of the Fréchet distance.
        seed: of the noise on latents.
    """

    def pairs() -> Pairs:
        for batch in decode_batches(images, indices, batch_size):
            yield batch, autoencoder.encode(batch).cpu()

    scores = _similarity(autoencoder, pairs(), min(sides(images.image_size)))
    scores |= _distance(autoencoder, pairs(), extractor)
    if isinstance(autoencoder.codec, VQCodec):
        return scores | _codebook_usage(autoencoder.codec, pairs())
    return scores | _robustness(autoencoder, pairs(), seed)


def _similarity(autoencoder: Autoencoder, pairs: Pairs, smallest_side: int) -> Scores:
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    psnr = PeakSignalNoiseRatio(data_range=255.0)
    ssim = StructuralSimilarityIndexMeasure(data_range=255.0)
    has_ssim = smallest_side >= SSIM_WINDOW
    for images, moments in pairs:
        output = reconstruct(autoencoder, moments).float()
        real = images.float()
        psnr.update(output, real)
        if has_ssim:
            ssim.update(output, real)

    scores: Scores = {"PSNR": float(psnr.compute())}
    if has_ssim:
        scores["SSIM"] = float(torch.as_tensor(ssim.compute()))
    else:
        reason = f"its window has {SSIM_WINDOW} pixels, the images {smallest_side}"
        scores["SSIM"] = f"not available ({reason})"
    return scores


def _distance(autoencoder: Autoencoder, pairs: Pairs, extractor: Extractor) -> Scores:
    real, output = [], []
    for images, moments in pairs:
        real.append(extractor(images).values)
        output.append(extractor(reconstruct(autoencoder, moments)).values)
    name = f"r{score_names(extractor.name)[0]}"
    real_fit = fit(torch.cat(real))
    output_fit = fit(torch.cat(output))
    return {name: frechet(real_fit, output_fit)}


def _robustness(autoencoder: Autoencoder, pairs: Pairs, seed: int) -> Scores:
    """Score decoding of sampled and of noisy latents; return the posterior's deviation."""
    from torchmetrics.image import PeakSignalNoiseRatio

    generator = torch.Generator().manual_seed(seed)
    sampled = PeakSignalNoiseRatio(data_range=255.0)
    noisy = PeakSignalNoiseRatio(data_range=255.0)
    deviations = []
    for images, moments in pairs:
        # noise on the CPU: the same numbers on every device
        _, std = moments.chunk(2, dim=1)
        real = images.float()
        noise = torch.randn(std.shape, generator=generator)
        z = autoencoder.draw(moments, noise)
        output = autoencoder.decode(z).cpu()
        sampled.update(output.float(), real)

        noise = torch.randn(std.shape, generator=generator).to(z)
        output = autoencoder.decode(z + NOISE * noise).cpu()
        noisy.update(output.float(), real)

        scaled = std * autoencoder.scale.cpu()
        deviations.append(scaled.flatten(1).mean(1))
    return {
        "PSNR drawn": float(sampled.compute()),
        f"PSNR drawn + {NOISE} deviations": float(noisy.compute()),
        "posterior deviation": float(torch.cat(deviations).mean()),
    }


def _codebook_usage(codec: VQCodec, pairs: Pairs) -> Scores:
    """Return the share of entries in use, and their perplexity."""
    codebook = codec.codebook.cpu()
    counts = torch.zeros(len(codebook), dtype=torch.int64)
    for _, moments in pairs:
        z, _ = moments.chunk(2, dim=1)
        entries = nearest_entries(codebook, z)
        counts += count_usage(entries, len(codebook))
    return {
        "codebook usage": float((counts > 0).double().mean()),
        "codebook perplexity": float(perplexity(counts)),
    }
