"""What the tokens of a DiT look at."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from dit.models.dit import DiT


@contextmanager
def attention_maps(network: DiT, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Watch some blocks while the network runs: softmax(q k^T / sqrt(d)), mean over the heads, [B, T, T] of each layer.

    Fused attention never has these weights in memory, so the blocks that are watched compute them the long way.
    """
    maps: dict[int, Tensor] = {}
    with ExitStack() as after:
        for layer in layers:
            attention: Any = network.blocks[layer].attn

            def keep(
                module: object, inputs: object, weights: Tensor, layer: int = layer
            ) -> None:  # [B, heads, T, T]
                maps[layer] = weights.float().mean(dim=1)

            after.callback(setattr, attention, "fused_attn", attention.fused_attn)
            attention.fused_attn = False
            after.callback(attention.attn_drop.register_forward_hook(keep).remove)
        yield maps


@contextmanager
def text_maps(network: DiT, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """The same of the cross-attention to text, with S tokens: [B, T, S] of each layer."""
    maps: dict[int, Tensor] = {}
    with ExitStack() as after:
        for layer in layers:
            attention: Any = network.blocks[layer].text_attn

            def keep(
                module: Any,
                inputs: tuple[Tensor, Tensor, Tensor],
                output: object,
                layer: int = layer,
            ) -> None:
                x, tokens, mask = inputs
                q, k, _ = module.heads(x, tokens)
                maps[layer] = module.weights(q.float(), k.float(), mask).mean(dim=1)

            after.callback(attention.register_forward_hook(keep).remove)
        yield maps
