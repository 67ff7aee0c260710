"""The *moments* of the posterior, mean and deviation, from images; and the statistics that follow from them.

Training draws a fresh latent from them each time. The mirrored image has moments of its own, for a latent can not be
mirrored itself.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dit.data.images import Images
from dit.encoders.autoencoder import Autoencoder


@dataclass(frozen=True)
class MomentSums:
    """Sums over moments from which the statistics of drawn z follow; sums of parts add up to those of the whole."""

    count: int
    first: np.ndarray  # [C] float64, sum of means
    second: np.ndarray  # [C] float64, sum of means squared + variances: E[z^2]

    @classmethod
    def of(cls, moments: np.ndarray | Tensor) -> "MomentSums":
        """Sums of moments [..., 2C, h, w], in float64."""
        values = np.asarray(moments)
        mean, std = np.split(values.reshape(-1, *values.shape[-3:]).astype(np.float64), 2, axis=1)
        second = np.square(mean).sum(axis=(0, 2, 3)) + np.square(std).sum(axis=(0, 2, 3))
        return cls(mean[:, 0].size, mean.sum(axis=(0, 2, 3)), second)

    def __add__(self, other: "MomentSums") -> "MomentSums":
        return MomentSums(
            self.count + other.count, self.first + other.first, self.second + other.second
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and deviation [C] of drawn z, float32."""
        mean = self.first / self.count
        variance = np.maximum(self.second / self.count - np.square(mean), 0)
        return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance)).float()


def decode_batches(images: Images, indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
    """uint8 batches [B, 3, H, W] of the images at `indices`; threads decode the next while the caller has one."""
    return in_batches((partial(images.__getitem__, int(i)) for i in indices), batch_size)


def in_batches(images: Iterator[Callable[[], Tensor]], batch_size: int) -> Iterator[Tensor]:
    """Batches [B, ...] of what these functions give; threads call those of the next while the caller has one."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:

        def submit() -> list[Future[Tensor]]:
            return [pool.submit(image) for image in islice(images, batch_size)]

        ahead = submit()
        while ahead:
            current, ahead = ahead, submit()
            yield torch.stack([image.result() for image in current])


def encode_views(images: Tensor, autoencoder: Autoencoder, flips: bool) -> Tensor:
    """uint8 [B, 3, H, W] -> moments [B, F, 2C, h, w] on the CPU: the image's and, with flips, the mirrored one's."""
    views = [images, images.flip(-1)] if flips else [images]
    return torch.stack([autoencoder.encode(view).cpu() for view in views], dim=1)
