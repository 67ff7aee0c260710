"""Latents without `dit encode`: encoded once and kept in memory, or encoded on access."""

import numpy as np
import torch
from torch import Tensor

from dit.data.images import Images
from dit.encoders.autoencoder import Autoencoder
from dit.latents.moments import MomentSums, decode_batches, encode_views, reading_threads

SAMPLE_FOR_STATISTICS = 2048  # images that OnlineLatents.statistics encodes


class MemoryLatents:
    """Latents whose moments are in memory, for small data.

    Args:
        moments: [N, F, 2C, h, w].
        labels: [N] int64.
    """

    def __init__(self, moments: Tensor, labels: np.ndarray, classes: list[str]):
        self._moments = moments
        self.labels = labels
        self.classes = classes
        self.flips = moments.shape[1] == 2

    @classmethod
    def encode(
        cls, images: Images, autoencoder: Autoencoder, flips: bool, batch_size: int = 64
    ) -> "MemoryLatents":
        """Encode all images now."""
        batches = decode_batches(images, np.arange(len(images)), batch_size)
        moments = torch.cat([encode_views(batch, autoencoder, flips) for batch in batches])
        return cls(moments, images.labels, images.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self._moments.shape[-3:]
        return channels // 2, height, width

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        return self._moments[torch.as_tensor(indices), torch.as_tensor(flip).long()].float()

    def statistics(self) -> tuple[Tensor, Tensor]:
        return MomentSums.of(self._moments).statistics()


class OnlineLatents:
    """Images encoded on access: nothing to prepare, but the encoder runs in every step."""

    def __init__(self, images: Images, autoencoder: Autoencoder, flips: bool):
        self.labels = images.labels
        self.classes = images.classes
        self.flips = flips
        self.shape = autoencoder.latent_shape(images.image_size)
        self._images = images
        self._autoencoder = autoencoder
        self._pool = reading_threads()

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        images = list(self._pool.map(self._images.__getitem__, np.asarray(indices).tolist()))
        batch = torch.stack(images)
        # mirror the pixels: only the chosen view is encoded
        mirrored = torch.as_tensor(flip)[:, None, None, None]
        return self._autoencoder.encode(torch.where(mirrored, batch.flip(-1), batch)).cpu()

    def statistics(self) -> tuple[Tensor, Tensor]:
        # a sample: encoding all images would delay the start of training
        count = min(len(self.labels), SAMPLE_FOR_STATISTICS)
        indices = np.linspace(0, len(self.labels) - 1, count).astype(np.int64)
        batches = decode_batches(self._images, indices, batch_size=32)
        views = (encode_views(batch, self._autoencoder, self.flips) for batch in batches)
        return MomentSums.total(map(MomentSums.of, views)).statistics()
