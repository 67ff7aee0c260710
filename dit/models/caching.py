"""Feature caching: what the middle blocks of a DiT do to the tokens is reused at the next times of sampling.

At neighbouring times they do nearly the same, so that the change of one call may be added again in the calls after it
(2312.00858 for U-Nets; 2406.01125, section 3.2, for transformers). No training is needed; images change a little.
"""

from collections.abc import Callable

from torch import Tensor, nn

from dit.models.dit import DiT


def full(network: DiT, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """All blocks: what the network says, and what the middle blocks did to the tokens, [B, T, D]."""
    first, *middle, last = network.blocks
    tokens, c = network.enter(x, t, y)
    before = after = first(tokens, c)
    for block in middle:
        after = block(after, c)
    return network.leave(last(after, c), c, x), after - before


def short(network: DiT, x: Tensor, t: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """The first block, that change [B, T, D], and the last block: nearly what the network says."""
    first, *_, last = network.blocks
    tokens, c = network.enter(x, t, y)
    return network.leave(last(first(tokens, c) + change, c), c, x)


class Cached(nn.Module):
    """A network whose middle blocks compute in the first of every so many calls and repeat their change of the tokens
    in the others; where the batch has another size they compute.

    Args:
        full: (x, t, y) -> what the network says, and the change.
        short: (x, t, y, change) -> nearly what the network says.
        every: 2 or more.
    """

    def __init__(
        self, full: Callable[..., tuple[Tensor, Tensor]], short: Callable[..., Tensor], every: int
    ):
        super().__init__()
        self.full, self.short, self.every, self.age = full, short, every, 0
        self.change: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As of the network: [B, C, H, W], [B], [B] or [B, L, E] -> [B, C or 2C, H, W]."""
        if self.change is None or self.age == self.every or len(self.change) != len(x):
            out, self.change = self.full(x, t, y)
            self.age = 1
            return out
        self.age += 1
        return self.short(x, t, y, self.change)

    def forget(self) -> None:
        """The next call is of other images."""
        self.change = None
