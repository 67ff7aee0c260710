"""Networks by name; all are forward(x, t, y) -> output."""

from typing import Any

import torch
from timm.layers import to_2tuple
from torch import nn

from dit.models.dit import SIZES, DiT, split_name


def check_name(name: str) -> None:
    """Whether a network has this name.

    Raises:
        UserError: none has, with the nearest names.
    """
    split_name(name)


def create_model(name: str, **sizes: Any) -> nn.Module:
    """`create_model("DiT-S/4", input_size=32, in_channels=4, num_classes=1000)`.

    Raises:
        UserError: unknown name, or a patch that does not divide the latents.
    """
    size, patch = split_name(name)
    return DiT(patch_size=patch, **SIZES[size], **sizes)


def parameters(network: nn.Module) -> int:
    """Number of parameters, fixed positions included."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(name: str, **sizes: Any) -> int:
    """Multiply-adds of one forward pass for one image (what papers call "Gflops"); real FLOPs are twice that."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = create_model(name, **sizes)
        x = torch.empty(1, sizes["in_channels"], *to_2tuple(sizes["input_size"]))
        t, y = torch.empty(1), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        network(x, t, y)
    return counter.get_total_flops() // 2
