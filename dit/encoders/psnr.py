"""PSNR of a first stage on images, and what the number means for a diffusion model on its latents.

A diffusion model learns what the autoencoder's latents hold: its samples are never better than the
reconstructions.
"""

import math

import torch
from torch import Tensor

from dit.encoders.autoencoder import Autoencoder

LOW = 20.0  # dB: a root mean square error of 26 of 255
GOOD = 25.0  # a root mean square error of 14 of 255
VERY_GOOD = 30.0  # a root mean square error of 8 of 255


def measure_psnr(autoencoder: Autoencoder, images: Tensor) -> float:
    """Return the PSNR in dB of the posterior means of uint8 images [B, 3, H, W], decoded to uint8.

    It is that of the mean squared error over the batch, so that one image without any error does
    not make it infinite.
    """
    moments = autoencoder.encode(images)
    return compute_psnr(images, reconstruct(autoencoder, moments))


def reconstruct(autoencoder: Autoencoder, moments: Tensor) -> Tensor:
    """Decode the means in moments [B, 2C, h, w] to uint8 [B, 3, H, W] on the CPU."""
    mean, _ = moments.chunk(2, dim=1)
    z = autoencoder.draw(moments, torch.zeros_like(mean))
    return autoencoder.decode(z).cpu()


def compute_psnr(real: Tensor, output: Tensor) -> float:
    """Return the peak signal-to-noise ratio of uint8 images in dB; infinite if they are equal.

    It is that of the mean squared error over all of them. The mean of each image's PSNR, which
    papers report, is higher.
    """
    error = float((output.cpu().float() - real.cpu().float()).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def is_enough(psnr: float) -> bool:
    """Whether a diffusion model on the latents can make samples that are recognisable."""
    return psnr >= LOW


def describe_psnr(psnr: float) -> str:
    """Return a PSNR in dB with what to expect of samples, such as `28.1 dB: good, …`."""
    if psnr == math.inf:
        return "without any error: samples are as sharp as the diffusion model makes them"
    if psnr < LOW:
        verdict = "not enough, samples will be blurred or wrong in colour"
    elif psnr < GOOD:
        verdict = "enough to recognise what is shown, but samples will lack fine detail"
    elif psnr < VERY_GOOD:
        verdict = "good, samples will lack only the finest detail"
    else:
        verdict = "very good, the loss is hardly visible"
    return f"{psnr:.1f} dB: {verdict}"
