"""The tensors of a network of this package: their shapes, and checks of a state dict."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from dit.errors import UserError
from dit.models.registry import create_model
from dit.runs.card import NetworkSpec

StateDict = dict[str, Tensor]


def expected_shapes(spec: NetworkSpec) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a network."""
    with torch.device("meta"):
        network = create_model(spec.model, **spec.sizes)
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def check_shapes(state_dict: StateDict, spec: NetworkSpec) -> None:
    """Refuse a state dict with missing, unknown or misshapen tensors."""
    shapes = expected_shapes(spec)
    check_names(shapes, state_dict)
    for name, shape in shapes.items():
        given = state_dict[name].shape
        if given != shape:
            raise not_a_dit(f"{name} is {list(given)} where {spec.model} has {list(shape)}")


def check_names(expected: Iterable[str], given: Iterable[str]) -> None:
    """Refuse missing and unknown names of tensors."""
    expected = dict.fromkeys(expected)
    given = dict.fromkeys(given)
    if missing := [name for name in expected if name not in given]:
        raise not_a_dit(f"no {first_names(missing)} among the tensors")
    if unknown := [name for name in given if name not in expected]:
        raise not_a_dit(f"unknown {first_names(unknown)}")


def as_float32(state_dict: StateDict, file: Path) -> StateDict:
    """Return the weights in float32, each in memory of its own.

    Integers, tensors that are sparse or have no values, NaN and infinity are refused by name.
    """
    converted = {}
    for name, tensor in state_dict.items():
        if odd := _odd_kind(tensor):
            raise UserError(
                f"{name} in {file} is {odd}",
                "floating-point weights",
                "take the weights from before they were quantized",
            )
        # a copy: safetensors refuses two tensors that share memory
        converted[name] = tensor.to(torch.float32, copy=True)
        if not converted[name].isfinite().all():
            count = int((~converted[name].isfinite()).sum())
            raise UserError(
                f"{name} in {file} has {count:,} values that are NaN or infinite",
                "finite weights",
                "take an earlier checkpoint",
            )
    return converted


def _odd_kind(tensor: Tensor) -> str:
    """Say what a tensor is that is no plain one of numbers; empty if it is."""
    if tensor.is_meta:
        return "without values"
    if tensor.layout is not torch.strided:
        return "sparse"
    return "" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def not_a_dit(given: str) -> UserError:
    """Return the error for tensors that are not those of a DiT."""
    return UserError(given, "the tensors of a DiT", "check that the file is a DiT's and complete")


def first_names(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
