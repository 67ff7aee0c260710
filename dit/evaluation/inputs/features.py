"""Features of images, computed in one pass that all ranks share."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor, Outputs
from dit.evaluation.inputs.images import ImageSet

OnBatch = Callable[[], None]  # may raise, on all ranks alike
ROWS = 4096  # features that ranks exchange at a time


@dataclass(frozen=True)
class Features:
    """Outputs of one feature network for N images: values [N, D], logits [N, K], spatial [N, S]."""

    values: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Extracted:
    """Features of the same images by the name of each network, and a SHA-256 over all pixels."""

    networks: dict[str, Features]
    digest: str


def no_callback() -> None:
    """Do nothing between batches."""


def extract(
    images: ImageSet,
    extractors: Sequence[Extractor],
    batch_size: int,
    ranks: Ranks,
    title: str,
    on_batch: OnBatch = no_callback,
) -> Extracted:
    """Return features of all images in order, on every rank; each image is read once.

    Args:
        on_batch: called before each batch, equally often on all ranks.
    """
    buffers = {
        e.name: [torch.zeros(len(images), width) if width else None for width in e.widths]
        for e in extractors
    }
    digests = torch.zeros(len(images), hashlib.sha256().digest_size, dtype=torch.uint8)

    # Ranks share out the batches of one process, so that features are bitwise equal.
    batches = -(-len(images) // batch_size)
    most = -(-batches // ranks.world)
    start = min(len(images), batches * ranks.rank // ranks.world * batch_size)
    stop = min(len(images), batches * (ranks.rank + 1) // ranks.world * batch_size)
    hidden = None if ranks.main else True
    bar = tqdm(total=stop - start, desc=title, unit="img", disable=hidden, leave=None)

    with bar, ThreadPoolExecutor(4) as pool:
        for first in range(start, start + most * batch_size, batch_size):
            on_batch()
            # A rank with one batch less still calls `on_batch`, which may be collective.
            if first >= stop:
                break
            last = min(first + batch_size, stop)
            # in a call of its own, so that these pixels are gone before the next are read
            digests[first:last] = _extract_batch(
                images, range(first, last), extractors, buffers, pool
            )
            bar.update(last - first)

    for layers in buffers.values():
        for layer in layers:
            if layer is not None:
                gather(layer, ranks)
    networks = {name: Features(*layers) for name, layers in buffers.items()}  # type: ignore
    digest = hashlib.sha256(gather(digests, ranks).numpy().tobytes())
    return Extracted(networks, digest.hexdigest())


def gather(buffer: Tensor, ranks: Ranks) -> Tensor:
    """Add up the parts of all ranks in `buffer` on the CPU, each zero elsewhere: exact."""
    if ranks.world > 1:
        for rows in buffer.split(ROWS):
            rows.copy_(ranks.sum(rows.to(ranks.device)))
    return buffer


def _extract_batch(
    images: ImageSet,
    indices: range,
    extractors: Sequence[Extractor],
    buffers: Mapping[str, Sequence[Tensor | None]],
    pool: ThreadPoolExecutor,
) -> Tensor:
    """Write features of these images into the buffers of each network; return `_digests`."""
    if images.batch:
        pixels = images.batch(indices)
    else:
        pixels = torch.stack(list(pool.map(images.read, indices)))
    for extractor in extractors:
        outputs = extractor(pixels)
        _check_finite(outputs, extractor, indices.start, images.name)
        for buffer, output in zip(buffers[extractor.name], outputs, strict=True):
            if buffer is not None and output is not None:
                buffer[indices.start : indices.stop] = output
    return _digests(pixels)


def _digests(pixels: Tensor) -> Tensor:
    """Return the SHA-256 of each image, [B, 32] uint8."""
    images = (image.contiguous().numpy().tobytes() for image in pixels)
    digests = b"".join(hashlib.sha256(image).digest() for image in images)
    return torch.tensor(np.frombuffer(digests, np.uint8)).view(len(pixels), -1)


def _check_finite(outputs: Outputs, extractor: Extractor, first: int, name: str) -> None:
    """Refuse NaN, which precision and recall would turn into plausible numbers."""
    layers = [layer for layer in outputs if layer is not None]
    finite = torch.stack([layer.isfinite().all(dim=1) for layer in layers])
    bad = ~finite.all(dim=0)
    if bad.any():
        index = first + int(bad.int().argmax())
        raise UserError(
            f"NaN in features ({extractor.name}) of image {index} of {name}",
            "finite features",
            "check that image and the weights of the feature network",
        )
