"""Faster calls of a network while sampling: weights rounded once, torch.compile, full batches."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit.diffusion.process import Denoise, Prediction
from dit.distributed.compile_cache import keep_compiled_code
from dit.distributed.compiling import compile_sizes
from dit.distributed.device import uses_bf16

GRAPH_ROWS = 16  # up to this many rows a GPU waits for kernel launches, which a CUDA graph saves


def round_weights(network: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """Return a copy whose linear layers are bfloat16 where that is the precision.

    Autocast would round them in every call; the results are the same to the bit, and less memory
    is read. All other tensors are shared with the network.
    """
    tensors: dict[int, Tensor] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        tensors[id(tensor)] = tensor

    if uses_bf16(device, precision):
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                for p in layer.parameters():
                    tensors[id(p)] = nn.Parameter(p.bfloat16(), requires_grad=False)

    # deepcopy takes what its memo already has, so only the modules are copied
    return copy.deepcopy(network, tensors)


def compile_network(
    network: Callable[..., Any], device: torch.device, rows: int
) -> Callable[..., Any]:
    """Compile a function of tensors for each batch size; on a GPU as a CUDA graph if small.

    Args:
        network: Returns a tensor or a tuple of tensors.
        device: Where it runs.
        rows: Size of the largest batch.
    """
    keep_compiled_code(device)
    # large batches keep a GPU busy without a graph, whose buffers they would multiply
    if device.type == "cpu" or rows > GRAPH_ROWS:
        return compile_sizes(network)
    graph = torch.compile(network, dynamic=False, mode="reduce-overhead")

    def call(*inputs: Tensor) -> Any:
        # the next call of the graph writes into the same memory
        out = graph(*inputs)
        if isinstance(out, Tensor):
            return out.clone()
        return tuple(part.clone() for part in out)

    return call


def pad_batches(denoise: Denoise, size: int) -> Denoise:
    """Fill smaller batches with their first image, so that one compiled size serves all."""

    def padded(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        count = len(x_t)
        missing = max(size - count, 0)
        more_x = x_t[:1].expand(missing, -1, -1, -1)
        more_y = y[:1].expand(missing)
        filled = denoise(torch.cat([x_t, more_x]), t, torch.cat([y, more_y]))
        return filled.rows(slice(count))

    return padded
