"""Feature caching: at most steps of sampling, the middle blocks of a DiT are not computed.

Between neighbouring times they change the tokens by nearly the same amount, so that the change of
one call is added again in the next calls (2312.00858 for U-Nets; 2406.01125, section 3.2, for
transformers). It needs no training; images change a little.
"""

from collections.abc import Callable

from torch import Tensor, nn

from dit.models.dit import DiT


def run_all_blocks(network: DiT, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Run all blocks: return the output and the middle blocks' change of the tokens [B, T, D]."""
    first, *middle, last = network.blocks
    tokens, c = network.embed(x, t, y)
    before = after = first(tokens, c)
    for block in middle:
        after = block(after, c)
    return network.unpatchify(last(after, c), c, x), after - before


def run_outer_blocks(network: DiT, x: Tensor, t: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """Run the first and the last block only, and add a change [B, T, D] between them."""
    first, *_, last = network.blocks
    tokens, c = network.embed(x, t, y)
    return network.unpatchify(last(first(tokens, c) + change, c), c, x)


class CachedNetwork(nn.Module):
    """A network that computes its middle blocks in one of `every` calls only.

    Args:
        full: (x, t, y) -> output and change, see above.
        short: (x, t, y, change) -> approximate output.
        every: 2 or more.
    """

    def __init__(
        self, full: Callable[..., tuple[Tensor, Tensor]], short: Callable[..., Tensor], every: int
    ):
        super().__init__()
        self.full, self.short, self.every = full, short, every
        self.change: Tensor | None = None
        # since the change was computed
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        # the last batch of a sample may be smaller than the one before it
        fits = self.change is not None and len(self.change) == len(x)
        if not fits or self.calls == self.every:
            out, self.change = self.full(x, t, y)
            self.calls = 1
            return out

        self.calls += 1
        return self.short(x, t, y, self.change)

    def forget(self) -> None:
        """Drop the change: the next call is of other images."""
        self.change = None
