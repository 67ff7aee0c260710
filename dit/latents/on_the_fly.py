"""Latents without `dit encode`: of digits, encoded at once; of images, encoded on access."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.data.image_files import reading_threads
from dit.data.images import Images
from dit.distributed.launcher import read_launch
from dit.encoders.autoencoder import Autoencoder
from dit.latents.moments import MomentSums, decode_batches, encode_views

SAMPLE_FOR_STATISTICS = 2048  # images that OnlineLatents.statistics encodes
MOST_KEPT = 2**30  # bytes of moments of all images, up to which OnlineLatents keeps them


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
    """Images encoded on access: nothing to prepare.

    The latents of small data are kept in memory once they were encoded; of large data the encoder
    runs in every step.

    Args:
        left_out: indices of images that are not used, since they are damaged.
    """

    def __init__(
        self,
        images: Images,
        autoencoder: Autoencoder,
        flips: bool,
        left_out: Sequence[int] = (),
    ):
        self.images = images
        self.left_out = left_out
        self.labels = np.delete(images.labels, left_out) if left_out else images.labels
        self.classes = images.classes
        self.flips = flips
        self.shape = autoencoder.latent_shape(images.image_size)
        self._kept = np.delete(np.arange(len(images)), left_out) if left_out else None
        self._autoencoder = autoencoder
        self._pool = reading_threads()
        self._moments: Tensor | None = None  # [N, views, 2C, h, w], where they are kept
        self.views = 2 if flips else 1  # of an image: as it is, and mirrored
        self._known = np.zeros((len(self.labels), self.views), dtype=bool)

    @property
    def keeps(self) -> bool:
        """Whether latents are kept: those of all images are small."""
        return 4 * math.prod(self._view) * self._known.size <= MOST_KEPT

    @property
    def _view(self) -> tuple[int, int, int]:
        """The shape of the moments of an image, (2C, h, w)."""
        channels, height, width = self.shape
        return 2 * channels, height, width

    def without(self, left_out: Sequence[int]) -> "OnlineLatents":
        """Return the latents of the other images."""
        return OnlineLatents(self.images, self._autoencoder, self.flips, left_out)

    def read(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        indices, views = np.asarray(indices), np.asarray(flip).astype(int)
        if not self.keeps or views.max(initial=0) >= self.views:
            return self.encode(indices, flip)
        if self._moments is None:
            self._moments = torch.empty(*self._known.shape, *self._view)
        missing = np.unique(np.stack([indices, views])[:, ~self._known[indices, views]], axis=1)
        if missing.size:
            self._moments[tuple(torch.as_tensor(missing))] = self.encode(*missing)
            self._known[tuple(missing)] = True
        return self._moments[torch.as_tensor(indices), torch.as_tensor(views)]

    def encode(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        """Encode one or more images now."""
        images = list(self._pool.map(self.images.__getitem__, self.positions(indices).tolist()))
        batch = torch.stack(images)
        # mirror the pixels: only the chosen view is encoded
        mirrored = torch.as_tensor(flip).bool()[:, None, None, None]
        batch = torch.where(mirrored, batch.flip(-1), batch)
        # those that are kept one by one: the last bits of a network's outputs depend on the size
        # of a batch, and a resumed run has others
        alone = self.keeps and self._autoencoder.checksum is not None
        parts = batch.split(1 if alone else len(batch))
        return torch.cat([self._autoencoder.encode(part).cpu() for part in parts])

    def statistics(self) -> tuple[Tensor, Tensor]:
        # a sample: encoding all images would delay the start of training
        count = min(len(self.labels), SAMPLE_FOR_STATISTICS)
        indices = np.linspace(0, len(self.labels) - 1, count).astype(np.int64)
        batches = decode_batches(self.images, self.positions(indices), batch_size=32)
        quiet = read_launch().rank > 0
        bar = tqdm(total=count, unit="img", desc="statistics of latents", disable=quiet, delay=2)
        with bar:
            return MomentSums.total(self._sums(batches, bar)).statistics()

    def _sums(self, batches: Iterable[Tensor], bar: tqdm) -> Iterator[MomentSums]:
        for batch in batches:
            yield MomentSums.of(encode_views(batch, self._autoencoder, self.flips))
            bar.update(len(batch))

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """Return where these images are among all, those left out included."""
        indices = np.asarray(indices)
        return indices if self._kept is None else self._kept[indices]
