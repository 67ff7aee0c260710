"""Weights read from files that others made: as plain tensors, so that no code in them runs, and compared by shape."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


def read_tensors(path: Path, wanted: str) -> dict[str, Tensor]:
    """The tensors in a .safetensors file or a pickle of torch.save; they stay on disk until they are used.

    Raises:
        UserError: damaged, or a pickle that holds more than tensors; `wanted` is the file that was expected.
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
    return (
        {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    )


def is_torchscript(path: Path) -> bool:
    """Whether torch.load would hand the file to torch.jit.load, which unpickles no Python objects."""
    try:
        return (
            _is_archive(path)
            and "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
        )
    except RuntimeError:
        return False


def _is_archive(path: Path) -> bool:
    """As torch.load looks; Python's zipfile would take a pickle with an archive behind it for one too."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes, without the batch counters that PyTorch fills in where a file lacks them."""
    return {k: tuple(v.shape) for k, v in tensors.items() if not k.endswith("num_batches_tracked")}


def check_shapes(path: Path, given: Shapes, expected: Shapes, whose: str, wanted: str) -> None:
    """Refuse tensors that are not those of `whose` network, naming the first that differs."""
    wrong: Any = next((k for k in [*expected, *given] if given.get(k) != expected.get(k)), None)
    if wrong is not None:
        raise UserError(
            f"weights {path} are not {whose}: tensor {wrong} is {given.get(wrong, 'missing')}",
            f"{expected.get(wrong, 'no such tensor')}, as in {wanted}",
            "pass that file as --weights",
        )


def reason(error: BaseException) -> str:
    """An exception of any kind, in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].rstrip(": ")
