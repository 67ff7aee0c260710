"""Images in, features out, across ranks."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.errors import UserError
from dit.evaluation.extractors import Extractor
from dit.evaluation.images import ImageSet
from dit.hardware import Ranks


@dataclass(frozen=True)
class Features:
    """What a feature network says of N images: values [N, D], logits [N, K], and a SHA-256 over all pixels."""

    values: Tensor
    logits: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.values)



def extract(images: ImageSet, extractor: Extractor, batch_size: int, ranks: Ranks, title: str) -> Features:
    """Features of all images in order, on every rank; each rank reads and computes its part.

    Raises:
        UserError: an image can not be read, or its features are not finite; it is named.
    """
    buffers = (
        torch.zeros(len(images), extractor.width),
        torch.zeros(len(images), extractor.classes),
        torch.zeros(len(images), hashlib.sha256().digest_size, dtype=torch.uint8),
    )
    batches = -(-len(images) // batch_size)  # the same ones on any number of ranks, so that features are bitwise equal
    start, stop = (min(len(images), batches * r // ranks.world * batch_size) for r in (ranks.rank, ranks.rank + 1))
    with ThreadPoolExecutor(4) as pool, tqdm(total=stop - start, desc=title, unit="img", disable=not ranks.main) as bar:
        for first in range(start, stop, batch_size):
            part = range(first, min(first + batch_size, stop))
            pixels = torch.stack(list(pool.map(images.read, part)))
            outputs = (*extractor(pixels), _digests(pixels))
            _check_finite(outputs[0], outputs[1], first, images.name)
            for buffer, output in zip(buffers, outputs, strict=True):
                buffer[part.start : part.stop] = output
            bar.update(len(part))
    values, logits, digests = (_gather(buffer, ranks) for buffer in buffers)
    return Features(values, logits, hashlib.sha256(digests.numpy().tobytes()).hexdigest())


def _gather(buffer: Tensor, ranks: Ranks) -> Tensor:
    """The parts of all ranks, each zero elsewhere: their sum is exact."""
    return ranks.total(buffer.to(ranks.device)).cpu() if ranks.world > 1 else buffer


def _digests(pixels: Tensor) -> Tensor:
    """[B, 32] uint8: SHA-256 of each image."""
    digests = [hashlib.sha256(image.contiguous().numpy().tobytes()).digest() for image in pixels]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), -1).copy())


def _check_finite(values: Tensor, logits: Tensor, first: int, name: str) -> None:
    bad = ~(values.isfinite().all(dim=1) & logits.isfinite().all(dim=1))
    if bad.any():
        raise UserError(f"NaN in features of image {first + int(bad.int().argmax())} of {name}", "finite features",
                        "look at that image and at the weights of the feature network")
