"""Linear layers in float8, through torchao: half the bits of bfloat16 for most of a transformer's arithmetic."""

from importlib.util import find_spec

import torch
from torch import nn

from dit.distributed.device import device_kind
from dit.errors import UserError

CAPABILITY = (8, 9)  # of GPUs from which on there are float8 products


def has_fp8(device: torch.device) -> bool:
    """Whether float8 products run there."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY


def require_fp8(precision: str, device: torch.device) -> None:
    """Whether --precision can be followed on this device.

    Raises:
        UserError: it is fp8, and the device has no float8 products, or torchao is not installed.
    """
    if precision == "fp8" and not has_fp8(device):
        least = "{}.{}".format(*CAPABILITY)
        raise UserError(
            f"--precision fp8 on {device_kind(device)}",
            f"a GPU of compute capability {least} or more, as Ada, Hopper and Blackwell are",
            "pass --precision bf16, or auto",
        )
    if precision == "fp8" and find_spec("torchao") is None:
        raise UserError(
            "--precision fp8 without torchao",
            "the library that float8 layers come from",
            "pip install torchao, or pass --precision bf16",
        )


def convert_to_float8(network: nn.Module, emulate: bool = False) -> None:
    """Let the linear layers of a network's blocks multiply in float8, from now on; their weights are the same float32
    parameters, by the same names.

    Inputs and weights are rounded to e4m3, gradients to e5m2 (2209.05433), each tensor scaled at each use by its own
    largest value. Layers that regress modulations stay in bfloat16: with a row for each image, not for each token, they
    have too little work to gain from it.

    Args:
        emulate: multiply in float32 what was rounded so: slower, on any device.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(
        pad_inner_dim=True, emulate=emulate
    )  # so that any number of tokens will do
    convert_to_float8_training(network.blocks, module_filter_fn=_fits, config=config)  # type: ignore[arg-type]


def _fits(layer: nn.Module, name: str) -> bool:
    """Whether a linear layer is large, and its sides are what float8 products take."""
    return "adaLN_modulation" not in name and all(side % 16 == 0 for side in layer.weight.shape)  # type: ignore[union-attr]
