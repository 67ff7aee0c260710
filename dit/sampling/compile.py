"""A network as sampling calls it: rounded once, compiled where asked for."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit.diffusion.process import Denoise, Prediction
from dit.distributed.device import uses_bf16

GRAPHED = 16  # rows of a call up to which a GPU waits for its orders, which a CUDA graph gives all at once


def ready(network: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """A twin that shares its tensors with the network, but for weights that autocast would round in every call.

    Those of linear layers are bfloat16 where that is the precision: the same numbers come out, to the
    bit, and less memory is read.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    rounded = {}
    if uses_bf16(device, precision):
        layers = (module for module in network.modules() if isinstance(module, nn.Linear))
        rounded = {
            id(p): nn.Parameter(p.bfloat16(), requires_grad=False)
            for m in layers
            for p in m.parameters()
        }
    return copy.deepcopy(network, shared | rounded)


def compiled(network: Callable[..., Any], device: torch.device, rows: int) -> Callable[..., Any]:
    """A network, or a function of tensors, under torch.compile, for each size of calls by itself; on a GPU as a CUDA
    graph where calls are small.

    Args:
        network: gives a tensor, or a tuple of them.
        rows: of the largest call.
    """
    if device.type == "cpu" or rows > GRAPHED:
        return torch.compile(network, dynamic=False)
    graph = torch.compile(network, dynamic=False, mode="reduce-overhead")

    def call(*inputs: Tensor) -> Any:
        out = graph(*inputs)  # the next call writes into the same memory
        return out.clone() if isinstance(out, Tensor) else tuple(one.clone() for one in out)

    return call


def filled(denoise: Denoise, size: int) -> Denoise:
    """Smaller batches are filled up with their first image, and what comes of that is left out: for networks that are
    compiled for every size by itself."""

    def same(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        count = len(x_t)
        more = max(size - count, 0)
        x_t, y = (
            torch.cat([v, v[:1].expand(more, *v.shape[1:])]) for v in (x_t, y)
        )  # none: all batches are alike
        return denoise(x_t, t, y).rows(slice(count))

    return same
