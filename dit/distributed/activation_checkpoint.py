"""Activation checkpointing: what a block computes on its way is forgotten, and computed again for the backward pass.

Memory of activations for time (1604.06174), with the same gradients.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from dit.models.unet import UNet

aten = torch.ops.aten
PRODUCTS: list[Any] = [
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_mm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]
"""What `selective` keeps the outputs of: all that is dear. Attention that is not fused is computed again, for it is
large and not dear (2205.05198, section 5)."""


def activation_checkpointing(network: nn.Module, mode: str) -> None:
    """Let the blocks of a network forget activations, from now on; names of its weights stay.

    Args:
        mode: `none`; `full`, a block keeps its input alone, and runs twice; `selective`, it keeps the outputs of its
            matrix products, and what lies between them (norms, modulations, activation functions) runs twice.
    """
    if mode == "none":
        return
    again = partial(
        checkpoint, use_reentrant=False, preserve_rng_state=False
    )  # there is no dropout
    if mode == "selective":
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, PRODUCTS))
    if isinstance(network, UNet):
        network.unet.enable_gradient_checkpointing(again)
        return
    for block in network.blocks:  # type: ignore[union-attr]
        block.forward = partial(again, block.forward)
