"""What a feature network is to the rest of the evaluation, whatever it is made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """What a feature network says of B images; None where it has no such layer."""

    values: Tensor  # [B, D]
    logits: Tensor | None = None  # [B, K], of a classifier, for IS
    spatial: Tensor | None = None  # [B, S], before pooling, for sFID


@dataclass(frozen=True)
class Extractor:
    """A feature network, ready to use.

    Args:
        network: [B, 3, H, W] uint8 on `device` -> Outputs.
        name: as scores show it, FD(name).
        weights: what the weights are called, and `checksum` their SHA-256.
        preprocessing: what happens to pixels before the network sees them.
        widths: number of values D, logits K and spatial features S, the last two 0 where there are none.
        class_names: what the logits tell apart, in their order, where known.
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
    """Neither autocast nor TF32, whatever surrounds the block: TF32 moves features by a thousandth."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
