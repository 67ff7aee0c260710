"""Linear layers in float8 through torchao: half the bits of bfloat16 for most matrix products."""

from importlib.util import find_spec

import torch
from torch import nn

from dit.distributed.device import device_kind
from dit.errors import UserError

MIN_CAPABILITY = (8, 9)  # of GPUs with float8 products


def has_fp8(device: torch.device) -> bool:
    """Whether the device has float8 products."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def require_fp8(precision: str, device: torch.device) -> None:
    """Refuse --precision fp8 on a device without float8 products, and without torchao."""
    if precision != "fp8":
        return
    if not has_fp8(device):
        least = "{}.{}".format(*MIN_CAPABILITY)
        raise UserError(
            f"--precision fp8 on {device_kind(device)}",
            f"a GPU of compute capability {least} or more, as Ada, Hopper and Blackwell are",
            "pass --precision bf16, or auto",
        )
    if find_spec("torchao") is None:
        raise UserError(
            "--precision fp8 without torchao",
            "the library that has float8 layers",
            "pip install torchao, or pass --precision bf16",
        )


def convert_to_float8(network: nn.Module, emulate: bool = False) -> None:
    """Make the linear layers of a network's blocks multiply in float8; weights stay float32.

    Inputs and weights are rounded to e4m3, gradients to e5m2 (2209.05433), each tensor scaled by
    its own largest value. Layers of the modulation stay in bfloat16: with one row an image, not one
    a token, they have too little work to gain.

    Args:
        emulate: multiply the rounded numbers in float32: slower, on any device.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # Padding lets any number of tokens through.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    blocks: nn.Module = network.blocks  # type: ignore[assignment]
    convert_to_float8_training(blocks, module_filter_fn=_fits, config=config)


def _fits(layer: nn.Module, name: str) -> bool:
    """Whether a linear layer is large, and float8 products take its shape."""
    sides = layer.weight.shape  # type: ignore[union-attr]
    return "adaLN_modulation" not in name and all(side % 16 == 0 for side in sides)  # type: ignore[union-attr]
