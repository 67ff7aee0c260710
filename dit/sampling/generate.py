"""Seeds -> images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dit.config import SamplerConfig
from dit.distributed.device import autocast, pinned
from dit.errors import NotFinite
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import SamplingPipeline


class ImageNoise:
    """Each call gives the next standard normal draw [B, C, h, w], float32.

    Image i has its own counter-based stream, keyed by (seed, i) alone: it knows nothing of batch, rank or device.

    Args:
        seed: of the whole set of images.
        indices: [B], which images of the set.
        shape: (C, h, w).
        device: where the draws go; they are made on the CPU.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int] | Tensor,
        shape: tuple[int, int, int],
        device: torch.device,
    ):
        keys = [np.array([seed, int(i)], dtype=np.uint64) for i in indices]
        self.streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        draws = [stream.standard_normal(self.shape, dtype=np.float32) for stream in self.streams]
        return pinned(torch.from_numpy(np.stack(draws)), self.device).to(
            self.device, non_blocking=True
        )


def generate(
    run: LoadedRun, plan: SamplingPipeline, config: SamplerConfig, labels: Tensor, indices: Tensor
) -> Tensor:
    """Images of the given classes: uint8 [N, 3, H, W] on the CPU.

    Args:
        run: network and autoencoder.
        plan: sampler, guidance and times, from `build_sampling`.
        config: seed, batch size and precision.
        labels: int64 [N], class ids.
        indices: int64 [N]; image i is made from (seed, i) alone.

    Raises:
        NotFinite: an image came out as NaN or infinite.
    """
    batches = zip(labels.split(config.batch_size), indices.split(config.batch_size), strict=True)
    return torch.cat([_generate_batch(run, plan, config, y, i) for y, i in batches])


@torch.inference_mode()
def _generate_batch(
    run: LoadedRun, plan: SamplingPipeline, config: SamplerConfig, labels: Tensor, indices: Tensor
) -> Tensor:
    latents = sample_latents(run, plan, config, labels, indices)
    check_finite(latents, labels, indices)
    return run.autoencoder.decode(latents).cpu()


def check_finite(latents: Tensor, labels: Tensor, indices: Tensor) -> None:
    """Make sure that no image [B] came out as NaN or infinite.

    Raises:
        NotFinite: one did.
    """
    finite = latents.flatten(1).isfinite().all(dim=1).cpu()
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise NotFinite(int(indices[first]), int(labels[first]))


@torch.inference_mode()
def sample_latents(
    run: LoadedRun, plan: SamplingPipeline, config: SamplerConfig, labels: Tensor, indices: Tensor
) -> Tensor:
    """One batch of normalised latents, float32 [B, C, h, w], for labels [B] and indices [B]."""
    noise = ImageNoise(config.seed, indices, run.latent_shape, run.device)
    with autocast(run.device, config.precision), plan.one_batch():
        return plan.sampler(
            plan.denoise, plan.process, noise(), labels.to(run.device), plan.times, noise
        )


def sample_grid(
    run: LoadedRun,
    plan: SamplingPipeline,
    config: SamplerConfig,
    classes: Sequence[int],
    per_class: int,
) -> tuple[Tensor, Tensor]:
    """`per_class` images of each class, class by class: uint8 [N, 3, H, W] and their labels, int64 [N]."""
    labels = torch.tensor(classes).repeat_interleave(per_class)
    return generate(run, plan, config, labels, torch.arange(len(labels))), labels
