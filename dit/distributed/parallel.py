"""A network over ranks: each has all of it (DDP), or a share of every tensor (FSDP2)."""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from dit.distributed.compile_cache import keep_compiled_code
from dit.distributed.compiling import compile_sizes
from dit.distributed.device import uses_bf16
from dit.distributed.ranks import Ranks


def shard(network: nn.Module, fixed: Set[str], ranks: Ranks, precision: str) -> None:
    """Keep this rank's share of every tensor, block by block where there are blocks (FSDP2).

    A block's weights are gathered when it is called, in bfloat16 where that is the precision, and
    freed after it. Shares, gradients summed over ranks, and the optimizer are float32.

    Args:
        fixed: names of tensors that are never trained; every rank keeps all of them.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    bf16 = torch.bfloat16 if uses_bf16(ranks.device, precision) else None
    policy = MixedPrecisionPolicy(
        param_dtype=bf16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # FSDP2 leaves ignored parameters where they are, so they are moved by hand.
    ignored = {parameter for name, parameter in network.named_parameters() if name in fixed}
    for parameter in ignored:
        parameter.data = parameter.data.to(ranks.device)
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy, ignored_params=ignored)


def wrap_ddp_and_compile(network: nn.Module, ranks: Ranks, compiled: bool) -> nn.Module:
    """Return the network as the loop calls it: gradients are means over ranks."""
    if compiled:
        keep_compiled_code(ranks.device)
    if isinstance(network, FSDPModule):
        # FSDP2's hooks stay outside of what is compiled.
        for block in _blocks(network) if compiled else ():
            block.forward = compile_sizes(block.forward)  # type: ignore[method-assign]
        return network
    wrapped = network
    if ranks.world > 1:
        # Buffers are tables that never change: nothing to broadcast in every step.
        no_broadcast: dict[str, Any] = {_broadcast_flag(): False}
        wrapped = DistributedDataParallel(network, gradient_as_bucket_view=True, **no_broadcast)
    if not compiled:
        return wrapped
    # sizes of batches never change; those of MeanFlow have two, which would become a variable
    return compile_sizes(wrapped)  # type: ignore[return-value]


def _broadcast_flag() -> str:
    """Return what DDP calls its broadcast of buffers in every forward pass."""
    # newer versions of PyTorch renamed it
    now = "forward_sync_buffers"
    return now if now in signature(DistributedDataParallel).parameters else "broadcast_buffers"


def as_forward(network: nn.Module, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function (network, *inputs) of a frozen network as one of the inputs.

    A sharded network gathers its weights for it, as for its forward pass, and frees them after it.
    """
    bound = partial(function, network)
    if not isinstance(network, FSDPModule):
        return bound
    network.bound = bound  # type: ignore[assignment]
    register_fsdp_forward_method(network, "bound")

    def call(*inputs: Tensor) -> Tensor:
        out = network.bound(*inputs)  # type: ignore[operator]
        # without a backward pass, nothing else frees those outside of the blocks
        network.reshard()
        return out

    return call


def warm_up_ddp(network: nn.Module, inputs: Callable[[], tuple[Any, ...]]) -> None:
    """Let DDP fix the order in which it sums gradients, which takes a backward pass.

    The last bit of sums over three ranks or more depends on that order, and a resumed run has to
    sum as one that never stopped.

    Args:
        inputs: returns any inputs of a step.
    """
    if isinstance(_uncompiled(network), DistributedDataParallel):
        outputs = [part for part in tree_leaves(network(*inputs())) if part is not None]
        sum(part.sum() for part in outputs).backward()  # type: ignore[union-attr]
        network.zero_grad(set_to_none=True)


@contextmanager
def sync_gradients(networks: Sequence[nn.Module], last: bool) -> Iterator[None]:
    """Let ranks average gradients in the last micro-batch only."""
    with ExitStack() as stack:
        for network in networks:
            wrapped = _uncompiled(network)
            if isinstance(wrapped, FSDPModule):
                wrapped.set_requires_gradient_sync(last)
            if isinstance(wrapped, DistributedDataParallel) and not last:
                stack.enter_context(wrapped.no_sync())
        yield


def _blocks(network: nn.Module) -> Sequence[nn.Module]:
    """Return the blocks of a network, if it has any."""
    return list(getattr(network, "blocks", ()))


def _uncompiled(network: nn.Module) -> nn.Module:
    """Return the network that torch.compile wraps, or the network itself."""
    return getattr(network, "_orig_mod", network)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor, gathered if ranks have shares of it: then all of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_state_dict(network: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """Return copies of all full tensors in main memory on rank 0, nothing on others."""
    state = {}
    for name, value in network.state_dict().items():
        full = full_tensor(value.detach())
        if ranks.main:
            state[name] = full.to("cpu", copy=True)
    return state
