"""Activation checkpointing: the backward pass computes a block's activations again (1604.06174).

It saves memory for time, with the same gradients.
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
"""Expensive operations, whose outputs `selective` keeps.

Attention that is not fused is computed again: it is large and cheap (2205.05198, section 5).
"""


def activation_checkpointing(network: nn.Module, mode: str) -> None:
    """Checkpoint the activations of a network's blocks from now on; names of weights stay.

    Args:
        mode: `none`; `full`: a block keeps its input alone, and runs twice; `selective`: it keeps
            the outputs of matrix products, and all else (norms, modulations, activations) runs
            twice.
    """
    if mode == "none":
        return
    # Blocks have no dropout, so that no random state needs to be restored.
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if mode == "selective":
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, PRODUCTS))

    if isinstance(network, UNet):
        network.unet.enable_gradient_checkpointing(again)
        return
    for block in network.blocks:  # type: ignore[union-attr]
        block.forward = partial(again, block.forward)
