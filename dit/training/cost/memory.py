"""What a step of training needs of memory, counted without doing it.

A step runs on tensors without data (`FakeTensorMode`), eagerly, while a ledger notes every storage as it comes and
goes. What several ranks share out, and what they need to exchange it, is reckoned from there. Neither the few megabytes
that kernels take for themselves are counted, nor what an allocator leaves free between storages.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dit.build import build_network
from dit.distributed.activation_checkpoint import activation_checkpointing as forgets
from dit.distributed.device import autocast, choose_attention, uses_bf16
from dit.models.registry import blank_inputs
from dit.runs.card import NetworkSpec

PARTS = ("weights", "optimizer", "gradients", "copies", "activations", "temporaries")
DRAWN = 5  # tensors of the latents' size that a step begins with, for all micro-batches: two moments, two noises, x0
RESERVE = 0.1  # share of a device's memory that is not ours: context, communication buffers, what lies free between
GATHERED, REDUCED = (
    2,
    2,
)  # blocks whose weights, and whose gradients, FSDP2 has on their way at once


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank has in use at the peak of a step."""

    weights: int  # that it holds for good, in float32
    averages: int  # EMAs
    optimizer: int  # AdamW's moments
    gradients: int
    copies: int  # of weights in bfloat16, for autocast
    activations: int  # and inputs
    temporaries: int  # of the backward pass and of the optimizer
    exchange: int  # FSDP: weights and gradients of blocks on their way between ranks

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


@dataclass(frozen=True)
class Layout:
    """How ranks share the work of a step."""

    parallel: str = "ddp"  # every rank holds everything; `fsdp`: its share of every tensor
    world: int = 1
    grad_accum: int = 1

    @property
    def shared(self) -> bool:
        """Whether ranks hold shares."""
        return self.parallel == "fsdp" and self.world > 1

    @property
    def keeps_gradients(self) -> bool:
        """Whether there are some when a forward pass begins: of the micro-batch before, or the buckets of DDP."""
        return self.grad_accum > 1 or (self.parallel == "ddp" and self.world > 1)


def estimate(
    spec: NetworkSpec,
    batch: int,
    device: torch.device,
    precision: str,
    *,
    recompute: str = "none",
    grad_accum: int = 1,
    averages: int = 1,
    text_tokens: int = 0,
    parallel: str = "ddp",
    world: int = 1,
) -> Memory:
    """The peak of a step on one of `world` ranks.

    Args:
        batch: images that a rank has in work at once.
        averages: how many EMAs follow the weights.
        text_tokens: of a caption, for a network of text.
        parallel: `ddp`, every rank holds everything, or `fsdp`, its share.
    """
    step = Step(
        lambda: build_network(spec),
        lambda n: blank_inputs(spec.model, n, text_tokens, **spec.sizes),
        device,
        uses_bf16(device, precision),
        recompute,
    )
    layout = Layout(parallel, world, grad_accum)
    return step.peak(step.course(batch, layout), layout, averages)


@dataclass(frozen=True)
class Step:
    """A training step of one process: `network()` on `inputs(images)`."""

    network: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    device: torch.device
    bf16: bool
    recompute: str

    def course(self, batch: int, layout: Layout) -> np.ndarray:
        """Bytes of each of PARTS as the step goes, [moments, parts]: a row for each storage that comes."""
        present = (
            self.device
            if self.device.type != "cuda" or torch.cuda.is_available()
            else torch.device("cpu")
        )
        precision = "bf16" if self.bf16 else "fp32"
        with FakeTensorMode(), present:
            network, inputs = self.network(), self.inputs(batch)
            choose_attention(network, self.device, precision)
            forgets(network, self.recompute)
            ledger, optimizer = Ledger(), with_moments(network)
            optimizer.zero_grad(set_to_none=not layout.keeps_gradients)
            drawn = torch.zeros(DRAWN * layout.grad_accum, *inputs[0].shape)
            enter(ledger, network, optimizer, [*inputs, drawn])
            with ledger:
                with autocast(present, precision):
                    loss = network(*inputs).float().square().mean()
                ledger.part = "temporaries"
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
        return np.array(ledger.rows)

    def peak(self, course: np.ndarray, layout: Layout, averages: int) -> Memory:
        """The moment of a course when most is in use.

        FSDP2 brings a block's weights together in the precision of the arithmetic, so that autocast needs no copies,
        and keeps whole gradients between micro-batches.
        """
        held = sharded(self.blank, layout.world if layout.shared else 1)
        share = held / sharded(self.blank, 1)
        shares = [share, share, 1 if layout.grad_accum > 1 else share, not layout.shared, 1, 1]
        rows = course * np.array(shares, dtype=float)
        most = rows[rows.sum(axis=1).argmax()].astype(int).tolist()
        moving = exchanged(self.blank, 2 if self.bf16 else 4) if layout.shared else 0
        return Memory(
            **dict(zip(PARTS, most, strict=True)), averages=averages * held, exchange=moving
        )

    @cached_property
    def blank(self) -> nn.Module:
        """The network without data."""
        with torch.device("meta"):
            return self.network()


def with_moments(network: nn.Module) -> torch.optim.Optimizer:
    """AdamW as the trainer has it, after a step."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def enter(
    ledger: "Ledger", network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Iterable[Tensor]
) -> None:
    """What is there when a step begins; gradients are known as such as soon as they are whole."""
    for parameter in network.parameters():
        ledger.note(parameter, "weights")
        if parameter.grad is not None:
            ledger.note(parameter.grad, "gradients")
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.move(p.grad, "gradients"))
    for tensor in (t for moments in optimizer.state.values() for t in moments.values()):
        ledger.note(tensor, "optimizer")
    for tensor in inputs:
        ledger.note(tensor, "activations")


class Ledger(TorchDispatchMode):
    """Bytes of all storages in use, by part, from the moment that it is told of them or sees them made.

    It agrees with torch's own `MemTracker`, which takes ten times as long and no weights without gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = "activations"  # that storages made from now on belong to
        self.rows: list[list[int]] = []
        self._now = [0] * len(PARTS)
        self._known: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copies = func is torch.ops.aten._to_copy.default and self._part_of(args[0]) == "weights"
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note(tensor, "copies" if copies else self.part)
        return out

    def note(self, tensor: Tensor, part: str) -> None:
        """Count a tensor's storage, unless it is known, until nothing refers to it any more."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._count(part, storage.nbytes())
        self._known[storage._cdata] = part, storage.nbytes()
        weakref.finalize(storage, self._forget, storage._cdata)
        self.rows.append(list(self._now))

    def move(self, tensor: Tensor | None, part: str) -> None:
        """Count a storage that is known to another part."""
        assert tensor is not None
        address = tensor.untyped_storage()._cdata
        was, size = self._known[address]
        self._count(was, -size)
        self._count(part, size)
        self._known[address] = part, size

    def _part_of(self, tensor: Tensor) -> str | None:
        return self._known.get(tensor.untyped_storage()._cdata, (None, 0))[0]

    def _forget(self, address: int) -> None:
        part, size = self._known.pop(address)
        self._count(part, -size)

    def _count(self, part: str, size: int) -> None:
        self._now[PARTS.index(part)] += size


def sharded(network: nn.Module, world: int) -> int:
    """Bytes of the largest share of a network, whose tensors are cut along their first axis, in float32."""
    return 4 * sum(
        math.ceil(p.shape[0] / world) * math.prod(p.shape[1:]) if p.requires_grad else p.numel()
        for p in network.parameters()
    )


def exchanged(network: nn.Module, width: int) -> int:
    """Bytes of blocks on their way: gathered weights and their gradients, `width` bytes each, and float32 sums."""
    largest = max(sum(p.numel() for p in block.parameters()) for block in network.blocks)  # type: ignore[union-attr]
    return largest * (GATHERED * width + width + REDUCED * 4)
