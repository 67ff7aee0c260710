"""The *moments* of the posterior, mean and deviation, of images, and the statistics of latents.

Training samples a latent from the moments in each step. A mirrored image has its own moments: a
latent cannot be mirrored itself.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dit.data.image_files import reading_threads
from dit.data.images import Images
from dit.encoders.autoencoder import Autoencoder


@dataclass(frozen=True)
class MomentSums:
    """Sums over moments, from which the statistics of sampled z follow; they can be added."""

    count: int
    first: np.ndarray  # [C] float64, sum of means
    second: np.ndarray  # [C] float64, sum of means squared + variances: E[z^2]

    @classmethod
    def of(cls, moments: np.ndarray | Tensor) -> "MomentSums":
        """Sum moments [..., 2C, h, w] in float64."""
        # float64: sums over millions of values
        values = np.asarray(moments)
        mean, std = np.split(values.reshape(-1, *values.shape[-3:]).astype(np.float64), 2, axis=1)
        second = np.square(mean).sum(axis=(0, 2, 3)) + np.square(std).sum(axis=(0, 2, 3))
        return cls(mean[:, 0].size, mean.sum(axis=(0, 2, 3)), second)

    @classmethod
    def total(cls, parts: Iterable["MomentSums"]) -> "MomentSums":
        """Add the sums of one or more parts, in order."""
        first, *rest = parts
        return sum(rest, first)

    def __add__(self, other: "MomentSums") -> "MomentSums":
        return MomentSums(
            self.count + other.count, self.first + other.first, self.second + other.second
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean [C] and deviation [C] of sampled z, float32."""
        mean = self.first / self.count
        # rounding may make the variance of a constant channel negative
        variance = np.maximum(self.second / self.count - np.square(mean), 0)
        return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance)).float()


def decode_batches(images: Images, indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
    """Yield uint8 batches [B, 3, H, W] of the images at `indices`."""
    return prefetch_batches((partial(images.__getitem__, int(i)) for i in indices), batch_size)


def prefetch_batches(images: Iterator[Callable[[], Tensor]], batch_size: int) -> Iterator[Tensor]:
    """Yield batches [B, ...] of the functions' results; threads prepare the next batch."""
    with reading_threads() as pool:

        def submit() -> list[Future[Tensor]]:
            return [pool.submit(image) for image in islice(images, batch_size)]

        following = submit()
        while following:
            current, following = following, submit()
            yield torch.stack([image.result() for image in current])


def encode_views(images: Tensor, autoencoder: Autoencoder, flips: bool) -> Tensor:
    """Encode images and, with flips, their mirror images.

    uint8 [B, 3, H, W] -> moments [B, F, 2C, h, w] on the CPU, F = 2 with flips, else 1.
    """
    views = [images, images.flip(-1)] if flips else [images]
    return torch.stack([autoencoder.encode(view).cpu() for view in views], dim=1)
