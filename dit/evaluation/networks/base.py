"""What a feature network is to the rest of the evaluation, whatever it is made of."""

from collections.abc import Callable
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
        """[B, 3, H, W] uint8 -> Outputs, float32 on the CPU.

        The arithmetic is plain float32 whatever surrounds the call: TF32 moves features by a thousandth.
        """
        with torch.autocast(self.device.type, enabled=False), torch.backends.cudnn.flags(allow_tf32=False):
            outputs = self.network(images.to(self.device))
        return Outputs._make(None if layer is None else layer.float().cpu() for layer in outputs)
