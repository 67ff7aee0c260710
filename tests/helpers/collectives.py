"""Counts what ranks send."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sent(TorchDispatchMode):
    """Bytes that this rank sends in collectives, by rings; those of a few numbers aside."""

    FEW = 1024

    def __init__(self, world: int):
        super().__init__()
        self.world, self.bytes = world, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ops, share = torch.ops.c10d, (self.world - 1) / self.world
        if func is ops.allreduce_.default:
            self._add(2 * share, *args[0])
        elif func is ops._allgather_base_.default:
            self._add(share, args[0])
        elif func is ops._reduce_scatter_base_.default:
            self._add(share, args[1])
        return func(*args, **(kwargs or {}))

    def _add(self, share: float, *tensors: torch.Tensor) -> None:
        self.bytes += sum(share * t.nbytes for t in tensors if t.nbytes > self.FEW)
