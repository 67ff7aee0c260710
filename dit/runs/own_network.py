"""Networks of the user's own: a class MODULE:CLASS, or a network that Python code passed.

The class is created with input_size, in_channels and num_classes. Its forward(x, t, y) takes
latents [B, C, h, w], times [B] from 0 to 1000 and class ids [B], of which num_classes is the null
class, and returns a prediction like x.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily

from dit.errors import UserError
from dit.models.registry import is_own, zero_inputs
from dit.runs.card import GivenSpec, NetworkSpec
from dit.utils.imports import import_class, reason

TRIED = 2  # images that a network is tried on


def build_own(spec: NetworkSpec) -> nn.Module:
    """Return a network of the user's own, on the device of the context.

    Without data, on the meta device or in FakeTensorMode, it is built with data first and then
    copied: code of others may read values in its __init__.
    """
    context = torch.empty(0)
    with_data = not isinstance(context, FakeTensor) and context.device.type != "meta"
    with unset_fake_temporarily(), torch.device("cpu"):
        if isinstance(spec, GivenSpec):
            module = spec.module
        elif with_data:
            module = _create(spec)
        else:
            # the random stream is for initial weights alone
            with torch.random.fork_rng(devices=[]):
                module = _create(spec)
    return _copy(module, context.device if with_data else None)


def _copy(module: nn.Module, device: torch.device | None) -> nn.Module:
    """Return a copy on a device; None: of shapes without data, as the context makes them."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if device is None:
            copied = torch.empty(tensor.shape, dtype=tensor.dtype)
        else:
            copied = tensor.detach().clone().to(device)
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, tensor.requires_grad)
        memo[id(tensor)] = copied
    # deepcopy takes what its memo already has
    return copy.deepcopy(module, memo)


def _create(spec: NetworkSpec) -> nn.Module:
    cls: Any = import_class("--model", spec.model, "a network", nn.Module)
    sizes = {name: spec.sizes[name] for name in ("input_size", "in_channels", "num_classes")}
    try:
        return cls(**sizes)
    except Exception as error:  # the user's code can fail in any way
        words = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise UserError(
            f"--model {spec.model} cannot be created with {words} ({reason(error)})",
            "a class that takes input_size, in_channels and num_classes",
            "correct its __init__",
        ) from error


def require_fit(spec: NetworkSpec, recompute: str = "none") -> None:
    """Refuse a network of the user's own that does not map latents to predictions."""
    if not is_own(spec.model):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_own(spec)
        x, t, y = zero_inputs(spec.model, TRIED, 0, **spec.sizes)
        # the null class has the id after the last
        y[-1] = spec.num_classes
        given = f"--model {spec.model}"
        if not any(one.requires_grad for one in network.parameters()):
            raise UserError(
                f"{given} has no parameters to train",
                "a network with some",
                "keep its layers as attributes, lists of them as nn.ModuleList, and requires_grad",
            )
        inputs = f"x {list(x.shape)}, t {list(t.shape)}, y {y.tolist()}"
        try:
            out = network(x, t, y)
        except Exception as error:  # the user's code can fail in any way
            raise UserError(
                f"{given} fails on {inputs} ({reason(error)})",
                "a prediction like x",
                f"correct its forward; y goes up to the null class, {spec.num_classes}",
            ) from error
        shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if shape != list(x.shape):
            raise UserError(
                f"{given} returns {shape} for {inputs}",
                "a prediction like x",
                "correct its forward",
            )
        _require_without_values(spec)
    if recompute != "none" and not getattr(network, "blocks", None):
        raise UserError(
            f"--recompute {recompute} with {given}",
            "a network with blocks, an nn.ModuleList of this name",
            "drop --recompute",
        )


def _require_without_values(spec: NetworkSpec) -> None:
    """Refuse a network that reads values in its forward pass, which estimates run without data."""
    try:
        with FakeTensorMode():
            build_own(spec)(*zero_inputs(spec.model, TRIED, 0, **spec.sizes))
    except Exception as error:  # the user's code can fail in any way
        raise UserError(
            f"--model {spec.model} fails on tensors without data ({reason(error)})",
            "a forward that does not look at values, as .item() does, nor leave torch",
            "correct its forward: memory and FLOPs are counted without data",
        ) from error
