"""The derivative of a network along a direction of its inputs (forward-mode differentiation).

B images, C channels.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def tangent(
    network: nn.Module, *inputs: Tensor, derivative: Callable[..., Tensor] | None = None
) -> Tensor:
    """Return the derivative of the output [B, C, H, W] along a direction, without gradient.

    It costs about two forward passes and keeps no activations.

    Args:
        inputs: as those of `differentiate`.
        derivative: that function, if it was compiled.
    """
    with torch.no_grad(), plain_attention(network):
        return (derivative or differentiate)(network, *inputs)


def differentiate(
    network: nn.Module, x: Tensor, t: Tensor, y: Tensor, x_direction: Tensor, t_direction: Tensor
) -> Tensor:
    """Return the derivative of a network without fused attention.

    Args:
        x, x_direction: [B, C, H, W].
        t, t_direction: times, or times and lengths [B, 2].
        y: class ids [B] or text.
    """
    inputs, directions = (x, t), (x_direction, t_direction)
    return torch.func.jvp(lambda x, t: network(x, t, y), inputs, directions)[1]


def load_rules() -> None:
    """Let PyTorch load its forward-mode rules, without its warning of how they were written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is", FutureWarning)
        one = torch.ones(1)
        torch.func.jvp(torch.sin, (one,), (one,))


@contextmanager
def plain_attention(network: nn.Module) -> Iterator[None]:
    """Write attention as products meanwhile: fused kernels have no forward-mode rule."""
    fused = [module for module in network.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
