"""Feature caching: what the middle blocks of a transformer do to the tokens is reused at the next times of sampling.

At neighbouring times they do nearly the same, so that the change of one call may be added again in the calls after it
(2312.00858 for U-Nets; 2406.01125, section 3.2, for transformers). No training is needed; images change a little.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Remembering(nn.Module):
    """Blocks as one, [B, T, D] -> [B, T, D]: they compute in the first of every so many calls, and repeat their change
    of the tokens in the others; where the batch has another size they compute."""

    def __init__(self, blocks: Sequence[nn.Module], every: int):
        super().__init__()
        self.blocks, self.every, self.age = nn.ModuleList(blocks), every, 0
        self.change: Tensor | None = None

    def forward(self, x: Tensor, c: Any) -> Tensor:
        if self.change is None or self.age == self.every or self.change.shape != x.shape:
            before = x
            for block in self.blocks:
                x = block(x, c)
            self.change, self.age = x - before, 1
            return x
        self.age += 1
        return x + self.change


@contextmanager
def remembering(network: Any, every: int) -> Iterator[None]:
    """Let all blocks of a transformer but the first and the last do so meanwhile, with nothing to remember yet."""
    first, *middle, last = blocks = network.blocks
    network.blocks = nn.ModuleList([first, Remembering(middle, every), last])
    try:
        yield
    finally:
        network.blocks = blocks
