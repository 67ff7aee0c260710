"""The interface of every feature network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """Outputs of a feature network for B images; None where it has no such layer."""

    values: Tensor  # [B, D]
    logits: Tensor | None = None  # [B, K], of a classifier, for IS
    spatial: Tensor | None = None  # [B, S], before pooling, for sFID


@dataclass(frozen=True)
class Extractor:
    """A feature network with its weights.

    Args:
        network: [B, 3, H, W] uint8 on `device` -> Outputs.
        name: as in the names of scores, FD(name).
        weights: name of the weights, and `checksum` their SHA-256.
        preprocessing: how images are brought to the network's input, for the protocol.
        widths: number of values D, logits K and spatial features S; 0 for missing layers.
        class_names: names of the logits' classes, in order, where known.
    """

    network: Callable[[Tensor], Outputs]
    name: str
    weights: str
    checksum: str
    preprocessing: str
    device: torch.device
    widths: tuple[int, int, int]
    class_names: tuple[str, ...] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """[B, 3, H, W] uint8 -> Outputs, float32 on the CPU."""
        with plain_float32(self.device):
            outputs = self.network(images.to(self.device))
        return Outputs._make(None if layer is None else layer.float().cpu() for layer in outputs)


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """Switch off autocast and TF32 inside the block: TF32 moves features by a thousandth."""
    allow_tf32 = torch.backends.cudnn.allow_tf32
    matmul_precision = torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = allow_tf32
        torch.set_float32_matmul_precision(matmul_precision)
