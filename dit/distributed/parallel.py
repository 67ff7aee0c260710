"""A network over ranks: whole on each of them (DDP), or a share of every tensor on each (FSDP2)."""

from collections.abc import Callable, Set
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dit.distributed.device import uses_bf16
from dit.distributed.ranks import Ranks


def shard(network: nn.Module, fixed: Set[str], ranks: Ranks, precision: str) -> None:
    """Leave this rank its share of every tensor, block by block; those named as fixed, and never trained, stay whole.

    A block's weights come together when it is called, in bfloat16 where that is the precision, and go again after it.
    Shares, gradients summed over ranks, and what the optimizer does are float32.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    bf16 = torch.bfloat16 if uses_bf16(ranks.device, precision) else None
    policy = MixedPrecisionPolicy(
        param_dtype=bf16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    kept = {parameter for name, parameter in network.named_parameters() if name in fixed}
    for parameter in kept:
        parameter.data = parameter.data.to(ranks.device)
    for block in network.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy, ignored_params=kept)


def wrap_ddp_and_compile(network: nn.Module, ranks: Ranks, compiled: bool) -> nn.Module:
    """The network as the loop calls it: gradients are those of all ranks, on average; compiled where asked for."""
    if isinstance(network, FSDPModule):
        for block in network.blocks if compiled else ():  # type: ignore[union-attr]
            block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
        return network
    wrapped = (
        DistributedDataParallel(network, gradient_as_bucket_view=True)
        if ranks.world > 1
        else network
    )
    return torch.compile(wrapped) if compiled else wrapped  # type: ignore[return-value]


def warm_up_ddp(calls: nn.Module, inputs: Callable[[], tuple[Tensor, ...]]) -> None:
    """Let DDP put gradients in the order in which it will sum them, for which it takes a backward pass.

    The last bit of sums over three ranks or more hangs on that order, and a run that goes on has to sum as one that
    never stopped.

    Args:
        inputs: of a step, any.
    """
    wrapped = getattr(calls, "_orig_mod", calls)  # under the compiler
    if isinstance(wrapped, DistributedDataParallel):
        calls(*inputs()).sum().backward()
        calls.zero_grad(set_to_none=True)


def sync_gradients(network: nn.Module, last: bool) -> AbstractContextManager:
    """Let ranks average gradients in the last micro-batch only."""
    wrapped = getattr(network, "_orig_mod", network)  # under the compiler
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
    return (
        nullcontext()
        if last or not isinstance(wrapped, DistributedDataParallel)
        else wrapped.no_sync()
    )


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, put together where ranks have shares of it: then all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_state_dict(network: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """All tensors of a network, whole, in main memory of rank 0 alone, apart from those it goes on with."""
    state = {}
    for name, value in network.state_dict().items():
        together = full_tensor(value.detach())
        if ranks.main:
            state[name] = together.to("cpu", copy=True)
    return state
