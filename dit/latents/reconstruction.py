"""How well an autoencoder restores images: no sample can be sharper than its reconstructions."""

import math

import numpy as np
import torch

from dit.data.images import Images
from dit.encoders.autoencoder import Autoencoder
from dit.latents.moments import decode_batches


def measure_psnr(images: Images, autoencoder: Autoencoder, indices: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio, in dB, of the images at `indices`."""
    squares: list[torch.Tensor] = []
    for batch in decode_batches(images, indices, batch_size=8):
        moments = autoencoder.encode(batch)
        mean, _ = moments.chunk(2, dim=1)
        restored = autoencoder.decode(autoencoder.draw(moments, torch.zeros_like(mean))).cpu()
        squares.append((restored.double() - batch.double()).square().mean(dim=(1, 2, 3)))
    error = torch.cat(squares).mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf
