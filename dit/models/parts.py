"""What is read within a network: the tokens of an early block, and its inner head.

B images, T tokens of an image, D features.
"""

from typing import NamedTuple

from torch import Tensor, nn

EARLY, LATE = 0.3, 0.7  # of the depth: blocks 8 and 20 of 28, as in 2410.06940 and 2603.06507


class Parts(NamedTuple):
    """A prediction, and what an early block knows."""

    out: Tensor  # of the last layer, [B, C or 2C, H, W]
    inner: Tensor | None  # of the inner head (2512.24176), in the same shape, if there is one
    tokens: Tensor  # of the image after the early block, [B, T, D]


def early_block(depth: int) -> int:
    """Return how many blocks are run before the inner head: 8 of 28, 4 of 12."""
    return max(1, round(EARLY * depth))


def late_block(depth: int) -> int:
    """Return after how many blocks a teacher's tokens are read: 20 of 28, 8 of 12."""
    return max(1, round(LATE * depth))


class BothHeads(nn.Module):
    """A DiT as a network that returns its prediction and that of its inner head, by one call."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.network(x, t, y, None, True)
        return parts.out, parts.inner
