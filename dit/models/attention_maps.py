"""Record the attention weights of a DiT while it runs."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from dit.models.dit import DiT

Maps = dict[int, Tensor]


@contextmanager
def attention_maps(network: DiT, layers: Sequence[int]) -> Iterator[Maps]:
    """Record softmax(q k^T / sqrt(d)), mean over heads: [B, T, T] of each layer, at each call."""

    def keep(layer: int, module: object, inputs: object, weights: Tensor) -> None:
        maps[layer] = weights.float().mean(dim=1)  # [B, heads, T, T] -> [B, T, T]

    maps: Maps = {}
    with ExitStack() as restore:
        for layer in layers:
            attention: Any = network.blocks[layer].attn
            # fused attention never has these weights in memory
            restore.callback(setattr, attention, "fused_attn", attention.fused_attn)
            attention.fused_attn = False
            hook = attention.attn_drop.register_forward_hook(partial(keep, layer))
            restore.callback(hook.remove)
        yield maps


@contextmanager
def text_maps(network: DiT, layers: Sequence[int]) -> Iterator[Maps]:
    """Record the same of the cross-attention to S text tokens: [B, T, S] of each layer."""

    def keep(layer: int, module: Any, inputs: tuple[Tensor, ...], output: object) -> None:
        x, tokens, mask = inputs
        q, k, _ = module.heads(x, tokens)
        maps[layer] = module.weights(q.float(), k.float(), mask).mean(dim=1)

    maps: Maps = {}
    with ExitStack() as restore:
        for layer in layers:
            attention: Any = network.blocks[layer].text_attn
            restore.callback(attention.register_forward_hook(partial(keep, layer)).remove)
        yield maps
