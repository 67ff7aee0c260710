"""Images in, features out, across ranks."""

import hashlib
from collections.abc import Callable, Sequence
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
ROWS = 4096  # of features that go from rank to rank at a time


@dataclass(frozen=True)
class Features:
    """What one feature network says of N images: values [N, D], logits [N, K] and spatial [N, S], or None."""

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
    """What is heeded between batches where nothing calls away."""


def extract(
    images: ImageSet,
    extractors: Sequence[Extractor],
    batch_size: int,
    ranks: Ranks,
    title: str,
    heed: OnBatch = no_callback,
) -> Extracted:
    """Features of all images in order, on every rank; each rank reads and computes its part, and reads it once.

    Before each batch all ranks call `heed`, as often.

    Raises:
        UserError: an image can not be read, or its features are not finite; it is named.
    """
    buffers = {
        e.name: [torch.zeros(len(images), width) if width else None for width in e.widths]
        for e in extractors
    }
    digests = torch.zeros(len(images), hashlib.sha256().digest_size, dtype=torch.uint8)
    batches = -(
        -len(images) // batch_size
    )  # the same ones on any number of ranks, so that features are bitwise equal
    start, stop = (
        min(len(images), batches * r // ranks.world * batch_size)
        for r in (ranks.rank, ranks.rank + 1)
    )
    bar = tqdm(
        total=stop - start, desc=title, unit="img", disable=None if ranks.main else True, leave=None
    )
    with bar, ThreadPoolExecutor(4) as pool:
        for first in range(start, start + -(-batches // ranks.world) * batch_size, batch_size):
            heed()
            if first >= stop:
                break
            part = slice(first, min(first + batch_size, stop))
            pixels = torch.stack(list(pool.map(images.read, range(part.start, part.stop))))
            digests[part] = _digests(pixels)
            for extractor in extractors:
                outputs = extractor(pixels)
                _check_finite(outputs, extractor, first, images.name)
                for buffer, output in zip(buffers[extractor.name], outputs, strict=True):
                    if buffer is not None and output is not None:
                        buffer[part] = output
            bar.update(part.stop - part.start)
    networks = {
        name: Features(*(layer if layer is None else gather(layer, ranks) for layer in layers))  # type: ignore
        for name, layers in buffers.items()
    }
    return Extracted(networks, hashlib.sha256(gather(digests, ranks).numpy().tobytes()).hexdigest())


def gather(buffer: Tensor, ranks: Ranks) -> Tensor:
    """`buffer` on the CPU, filled with the parts of all ranks, each zero elsewhere: their sum is exact."""
    if ranks.world > 1:
        for rows in buffer.split(ROWS):
            rows.copy_(ranks.total(rows.to(ranks.device)))
    return buffer


def _digests(pixels: Tensor) -> Tensor:
    """[B, 32] uint8: SHA-256 of each image."""
    digests = [hashlib.sha256(image.contiguous().numpy().tobytes()).digest() for image in pixels]
    return torch.from_numpy(
        np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), -1).copy()
    )


def _check_finite(outputs: Outputs, extractor: Extractor, first: int, name: str) -> None:
    bad = ~torch.stack([layer.isfinite().all(dim=1) for layer in outputs if layer is not None]).all(
        dim=0
    )
    if bad.any():
        raise UserError(
            f"NaN in features ({extractor.name}) of image {first + int(bad.int().argmax())} of {name}",
            "finite features",
            "look at that image and at the weights of the feature network",
        )
