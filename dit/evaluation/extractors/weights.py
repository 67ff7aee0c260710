"""Weights in files that others made: read as plain tensors, so that no code runs, and verified."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


def read_tensors(path: Path, wanted: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file or a torch.save pickle, memory-mapped.

    Args:
        wanted: the expected file, for the message.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(
            f"weights {path} are no plain file of tensors",
            f"an intact {wanted}",
            "download the file again; nothing in it was run",
        ) from error
    state = state if isinstance(state, dict) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def is_torchscript(path: Path) -> bool:
    """Return whether torch.load would call torch.jit.load, which unpickles no Python objects."""
    if not _is_archive(path):
        return False
    try:
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        return False
    return "constants.pkl" in records


def _is_archive(path: Path) -> bool:
    # The test of torch.load; Python's zipfile would accept a pickle followed by an archive.
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes, without batch counters, which files may lack."""
    return {k: tuple(v.shape) for k, v in tensors.items() if not k.endswith("num_batches_tracked")}


def check_shapes(path: Path, given: Shapes, expected: Shapes, whose: str, wanted: str) -> None:
    """Refuse tensors that are not those of `whose` network, naming the first that differs."""
    for name in [*expected, *given]:
        if given.get(name) != expected.get(name):
            shape: Any = given.get(name, "missing")
            right: Any = expected.get(name, "no such tensor")
            raise UserError(
                f"weights {path} are not {whose}: tensor {name} is {shape}",
                f"{right}, as in {wanted}",
                "pass that file as --weights",
            )
