"""How well a first stage brings back images that it has not seen."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dit.commands.train_vae.codebook import nearest_entries, perplexity, usage
from dit.data.images import Images
from dit.encoders.autoencoder import Autoencoder, VQCodec
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.metrics.compute import score_names
from dit.evaluation.metrics.frechet import fit, frechet
from dit.latents.moments import decode_batches
from dit.utils.image_size import sides

SSIM_WINDOW = 11  # pixels
NOISE = 0.1  # deviations of the latents, to tell how brittle they are

Scores = dict[str, float | str]
"""By name; text says why there is no number. Higher is better for PSNR (dB) and SSIM, lower for rFD."""


def measure(
    autoencoder: Autoencoder,
    images: Images,
    indices: np.ndarray,
    extractor: Extractor | str,
    batch_size: int,
    seed: int,
) -> Scores:
    """The quality of reconstructions, as uint8, of the images at `indices`, at least 2.

    Args:
        extractor: whose features the Fréchet distance between images and reconstructions is of, or why there is none.
        seed: of the noise on latents.
    """

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in decode_batches(images, indices, batch_size):
            yield batch, autoencoder.encode(batch).cpu()

    scores = {
        **_likeness(autoencoder, pairs(), sides(images.image_size)),
        **_distance(autoencoder, pairs(), extractor),
    }
    if isinstance(autoencoder.codec, VQCodec):
        return {**scores, **_codebook(autoencoder.codec, pairs())}
    return {**scores, **_posterior(autoencoder, pairs(), seed)}


def reconstruct(autoencoder: Autoencoder, moments: Tensor) -> Tensor:
    """uint8 images [B, 3, H, W] on the CPU from the means in moments [B, 2C, h, w]."""
    noise = torch.zeros_like(moments.chunk(2, dim=1)[0])
    return autoencoder.decode(autoencoder.draw(moments, noise)).cpu()


def _likeness(
    autoencoder: Autoencoder, pairs: Iterator[tuple[Tensor, Tensor]], size: tuple[int, int]
) -> Scores:
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    psnr, ssim = (
        PeakSignalNoiseRatio(data_range=255.0),
        StructuralSimilarityIndexMeasure(data_range=255.0),
    )
    large = min(size) >= SSIM_WINDOW
    for images, moments in pairs:
        ours, real = reconstruct(autoencoder, moments).float(), images.float()
        psnr.update(ours, real)
        if large:
            ssim.update(ours, real)
    no_ssim = f"not available (its window has {SSIM_WINDOW} pixels, the images {min(size)})"
    return {
        "PSNR": float(psnr.compute()),
        "SSIM": float(torch.as_tensor(ssim.compute())) if large else no_ssim,
    }


def _distance(
    autoencoder: Autoencoder, pairs: Iterator[tuple[Tensor, Tensor]], extractor: Extractor | str
) -> Scores:
    if isinstance(extractor, str):
        return {"rFD": f"not available ({extractor})"}
    found = [
        (extractor(images).values, extractor(reconstruct(autoencoder, moments)).values)
        for images, moments in pairs
    ]
    real, ours = (fit(torch.cat(values)) for values in zip(*found, strict=True))
    return {f"r{score_names(extractor.name)[0]}": frechet(real, ours)}


def _posterior(
    autoencoder: Autoencoder, pairs: Iterator[tuple[Tensor, Tensor]], seed: int
) -> Scores:
    """Reconstructions of latents drawn, and drawn and disturbed; the posterior's deviation in those of the latents."""
    from torchmetrics.image import PeakSignalNoiseRatio

    generator = torch.Generator().manual_seed(seed)
    drawn, noisy = PeakSignalNoiseRatio(data_range=255.0), PeakSignalNoiseRatio(data_range=255.0)
    shares = []
    for images, moments in pairs:
        std = moments.chunk(2, dim=1)[1]
        z = autoencoder.draw(moments, torch.randn(std.shape, generator=generator))
        disturbed = z + NOISE * torch.randn(std.shape, generator=generator).to(z)
        for psnr, latents in ((drawn, z), (noisy, disturbed)):
            psnr.update(autoencoder.decode(latents).cpu().float(), images.float())
        shares.append((std * autoencoder.scale.cpu()).flatten(1).mean(1))
    return {
        "PSNR drawn": float(drawn.compute()),
        f"PSNR drawn + {NOISE} deviations": float(noisy.compute()),
        "posterior deviation": float(torch.cat(shares).mean()),
    }


def _codebook(codec: VQCodec, pairs: Iterator[tuple[Tensor, Tensor]]) -> Scores:
    """Share of the entries that the images use, and how many equally used ones would tell as much."""
    codebook = codec.codebook.cpu()
    counts = sum(
        (
            usage(nearest_entries(codebook, moments.chunk(2, dim=1)[0]), len(codebook))
            for _, moments in pairs
        ),
        torch.zeros(len(codebook), dtype=torch.int64),
    )
    return {
        "codebook usage": float((counts > 0).double().mean()),
        "codebook perplexity": float(perplexity(counts)),
    }
