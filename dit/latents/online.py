"""Latents without preparation: encoded now and kept in memory, or encoded whenever they are asked for."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from dit.data.images import Images
from dit.encoders.autoencoder import Autoencoder
from dit.latents.moments import MomentSums, decode_batches, encode_views

SAMPLE_FOR_STATISTICS = 2048  # images that OnlineLatents.statistics encodes


class MemoryLatents:
    """Moments in memory, for small data.

    Args:
        moments: [N, F, 2C, h, w].
        labels: [N] int64.
    """

    def __init__(self, moments: Tensor, labels: np.ndarray, classes: list[str]):
        self._moments, self.labels, self.classes = moments, labels, classes
        self.flips = moments.shape[1] == 2

    @classmethod
    def encode(
        cls, images: Images, autoencoder: Autoencoder, flips: bool, batch_size: int = 64
    ) -> "MemoryLatents":
        """Encode everything now."""
        batches = decode_batches(images, np.arange(len(images)), batch_size)
        moments = torch.cat([encode_views(batch, autoencoder, flips) for batch in batches])
        return cls(moments, images.labels, images.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""
        channels, height, width = self._moments.shape[-3:]
        return channels // 2, height, width

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        """Moments float32 [B, 2C, h, w] of samples [B], those mirrored where `flip` [B] says so."""
        return self._moments[torch.as_tensor(indices), torch.as_tensor(flip).long()].float()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and deviation [C] of drawn z."""
        return MomentSums.of(self._moments).statistics()


class OnlineLatents:
    """Images encoded when asked for: no preparation, but the encoder runs in every step."""

    def __init__(self, images: Images, autoencoder: Autoencoder, flips: bool):
        self.labels, self.classes, self.flips = images.labels, images.classes, flips
        self.shape = autoencoder.latent_shape(images.image_size)
        self._images, self._autoencoder = images, autoencoder
        self._pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        """Moments float32 [B, 2C, h, w] of samples [B], those mirrored where `flip` [B] says so."""
        images = torch.stack(
            list(self._pool.map(self._images.__getitem__, np.asarray(indices).tolist()))
        )
        mirrored = torch.as_tensor(flip)[:, None, None, None]
        return self._autoencoder.encode(torch.where(mirrored, images.flip(-1), images)).cpu()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and deviation [C] of drawn z, from at most 2,048 evenly spaced images."""
        count = min(len(self.labels), SAMPLE_FOR_STATISTICS)
        indices = np.linspace(0, len(self.labels) - 1, count).astype(np.int64)
        batches = decode_batches(self._images, indices, batch_size=32)
        sums = [
            MomentSums.of(encode_views(batch, self._autoencoder, self.flips)) for batch in batches
        ]
        return sum(sums[1:], sums[0]).statistics()
