"""A counter of the bytes that ranks send in collectives."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sent(TorchDispatchMode):
    """Bytes that this rank sends in collectives, with ring algorithms.

    Tensors of at most MIN_BYTES (losses, flags) are not counted.
    """

    MIN_BYTES = 1024

    def __init__(self, world: int):
        super().__init__()
        self.world = world
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ops = torch.ops.c10d
        share = (self.world - 1) / self.world
        # a ring all-reduce is a reduce-scatter and an all-gather
        if func is ops.allreduce_.default:
            self._add(2 * share, *args[0])
        elif func is ops._allgather_base_.default:
            self._add(share, args[0])
        elif func is ops._reduce_scatter_base_.default:
            self._add(share, args[1])
        return func(*args, **(kwargs or {}))

    def _add(self, share: float, *tensors: torch.Tensor) -> None:
        self.bytes += sum(share * t.nbytes for t in tensors if t.nbytes > self.MIN_BYTES)
