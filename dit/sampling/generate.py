"""From seeds to images: noise for each image, then the sampler, then the decoder."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from dit.distributed.device import autocast, pinned
from dit.errors import NotFinite
from dit.sampling.pipeline import SamplingPipeline


class ImageNoise:
    """Standard normal draws [B, C, h, w], float32, from one stream per image, keyed (seed, index).

    So image i does not depend on the batch, the number of ranks or the device.
    """

    def __init__(self, seed: int, indices: Iterable, shape: tuple[int, ...], device: torch.device):
        # Philox is counter-based: each key has an independent stream
        keys = [np.array([seed, int(i)], dtype=np.uint64) for i in indices]
        self.streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        # on the CPU, as generators of other devices give other numbers
        draws = [stream.standard_normal(self.shape, dtype=np.float32) for stream in self.streams]
        noise = pinned(torch.from_numpy(np.stack(draws)), self.device)
        return noise.to(self.device, non_blocking=True)


@torch.inference_mode()
def generate(pipeline: SamplingPipeline, labels: Tensor, indices: Tensor) -> Tensor:
    """Return images, uint8 [N, 3, H, W] on the CPU, of class ids [N] and image indices [N]."""
    images = []
    size = pipeline.settings.batch_size
    # decoded batch by batch: pixels in float32 take more memory than the network
    for y, i in zip(labels.split(size), indices.split(size), strict=True):
        latents = sample_latents(pipeline, y, i)
        require_finite(latents, y, i)
        images.append(pipeline.run.autoencoder.decode(latents).cpu())
    return torch.cat(images)


@torch.inference_mode()
def sample_latents(pipeline: SamplingPipeline, labels: Tensor, indices: Tensor) -> Tensor:
    """Return one batch of normalised latents, float32 [B, C, h, w]."""
    run, settings = pipeline.run, pipeline.settings
    noise = ImageNoise(settings.seed, indices, run.latent_shape, run.device)
    y = labels.to(run.device)

    with autocast(run.device, settings.precision), pipeline.clearing_block_cache():
        return pipeline.sampler(
            pipeline.denoise, pipeline.process, noise(), y, pipeline.times, noise
        )


def require_finite(latents: Tensor, labels: Tensor, indices: Tensor) -> None:
    """Raise NotFinite for the first image [B] whose latents have NaN or infinity."""
    bad = ~latents.flatten(1).isfinite().all(dim=1).cpu()
    if bad.any():
        first = int(bad.nonzero()[0])
        raise NotFinite(int(indices[first]), int(labels[first]))
