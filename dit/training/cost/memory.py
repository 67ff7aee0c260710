"""Memory of a training step, counted without data.

A step runs eagerly on tensors without data (`FakeTensorMode`) while a ledger records every storage
as it is allocated and freed. A rank's share, and what ranks exchange, is derived from there. Not
counted are the few megabytes of kernels' workspaces, and gaps that an allocator leaves between
storages.
"""

import math
import weakref
from collections.abc import Iterable
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
from dit.config import TrainConfig
from dit.diffusion.alignment import alignment_loss
from dit.distributed.activation_checkpoint import activation_checkpointing
from dit.distributed.device import autocast, choose_attention
from dit.models.alignment import Projector, late_tokens
from dit.models.dit import PatchTransformer
from dit.models.parts import Parts
from dit.models.registry import zero_inputs
from dit.runs.card import NetworkSpec
from dit.training.optimizer import build_optimizer
from dit.utils.image_size import sides

PART_NAMES = {
    "weights": "weights",
    "averages": "EMA",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "copies": "weights in bf16",
    "activations": "activations",
    "temporaries": "backward pass",
    "exchange": "exchange between ranks",
}
"""Parts of memory in words."""
PARTS = ("weights", "optimizer", "gradients", "copies", "activations", "temporaries")
DRAWN = 5  # tensors of the latents' size that every image brings: two moments, two noises, x0
RESERVE = 0.1  # share of a device's memory for its context, communication buffers and gaps
GATHERED = 2  # blocks whose weights FSDP2 has in transit at once
REDUCED = 2  # blocks whose gradients it has in transit
HEADS = 24  # of the widest networks


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank has in use at the peak of a step."""

    weights: int  # in float32
    averages: int  # EMAs
    optimizer: int  # its moments
    gradients: int
    copies: int  # of weights in bfloat16, by autocast
    activations: int  # and inputs
    temporaries: int  # of the backward pass and of the optimizer
    exchange: int  # FSDP: weights and gradients of blocks in transit between ranks

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class Layout:
    """How ranks share the work of a step."""

    parallel: str = "ddp"  # full copies; `fsdp`: a share of every tensor
    world: int = 1
    grad_accum: int = 1

    @property
    def shared(self) -> bool:
        """Whether a rank holds shares."""
        return self.parallel == "fsdp" and self.world > 1

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients exist before a forward pass: the last micro-batch's, or buckets."""
        return self.grad_accum > 1 or (self.parallel == "ddp" and self.world > 1)


def simulated_step(
    spec: NetworkSpec, config: TrainConfig, device: torch.device, bf16: bool, text_tokens: int
) -> "SimulatedStep":
    """Return the training step of a network, with captions of so many tokens."""
    return SimulatedStep(
        spec,
        device,
        bf16,
        config.recompute,
        text_tokens,
        averages=1 + len(config.ema_lengths),
        optimizer=config.optimizer,
        route=config.route,
        parts=config.reads_parts,
        align=config.align,
    )


@dataclass(frozen=True)
class SimulatedStep:
    """A training step of a network in one process, on tensors without data."""

    spec: NetworkSpec
    device: torch.device
    bf16: bool
    recompute: str = "none"
    text_tokens: int = 0
    averages: int = 1  # EMAs
    optimizer: str = "adamw"
    route: float = 0.0
    parts: bool = False  # whether an early block is read
    align: str | None = None

    def memory(self, batch: int, layout: Layout) -> Memory:
        """Return the peak on one rank, for `batch` images at once."""
        return self.peak(self.timeline(batch, layout), layout)

    def inputs(self, images: int) -> tuple[Tensor, ...]:
        return zero_inputs(
            self.spec.model,
            images,
            self.text_tokens,
            self.route,
            self.parts,
            **self.spec.sizes,
        )

    def timeline(self, batch: int, layout: Layout) -> np.ndarray:
        """Return the bytes of each of PARTS over time, [allocations, parts]."""
        # A GPU that is not there can be planned for: fake tensors of the CPU have the same sizes.
        here = self.device.type != "cuda" or torch.cuda.is_available()
        device = self.device if here else torch.device("cpu")
        precision = "bf16" if self.bf16 else "fp32"

        with FakeTensorMode(), device:
            network = build_network(self.spec)
            inputs = self.inputs(batch)
            choose_attention(network, self.device, precision)
            activation_checkpointing(network, self.recompute)
            projector, teacher = self.alignment(network)
            optimizer = with_moments(network, self.optimizer, projector)
            optimizer.zero_grad(set_to_none=not layout.keeps_gradients)

            ledger = Ledger()
            drawn = torch.zeros(DRAWN * layout.grad_accum, *inputs[0].shape)
            trained = nn.ModuleList([network, *([projector] if projector else [])])
            tensors = [part for part in inputs if isinstance(part, Tensor)]
            record_existing(ledger, trained, optimizer, [*tensors, drawn])
            with ledger:
                with autocast(device, precision):
                    if projector:
                        with torch.no_grad():
                            features = late_tokens(teacher, *inputs[:3])
                    outputs = network(*inputs)
                    loss = sum_of_losses(outputs)
                    if projector:
                        projected = projector(outputs.tokens).float()
                        loss = loss + alignment_loss(projected, features.float()).mean()
                ledger.part = "temporaries"
                loss.backward()
                nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
                optimizer.step()
        return np.array(ledger.rows)

    def alignment(self, network: Any) -> tuple[nn.Module | None, Any]:
        """Return projector and teacher of --align, if it is asked for."""
        if self.align is None:
            return None, None
        # The averages count the teacher's weights: what it allocates is its activations. An
        # encoder's weights count as frozen; its features are taken as wide as the tokens.
        teacher = build_network(self.spec).requires_grad_(False)
        size = network.pos_embed.shape[-1]
        return Projector(size, size, network.grid), teacher

    def peak(self, timeline: np.ndarray, layout: Layout) -> Memory:
        """Return the moment with most bytes in use on one rank."""
        held = shard_bytes(self.meta_network, layout.world if layout.shared else 1)
        share = held / shard_bytes(self.meta_network, 1)
        # Between micro-batches FSDP2 keeps full gradients.
        gradients = 1 if layout.grad_accum > 1 else share
        # It gathers weights in the precision of the arithmetic: autocast needs no copies.
        copies = 0 if layout.shared else 1
        rows = timeline * np.array([share, share, gradients, copies, 1, 1], dtype=float)
        peak = rows[rows.sum(axis=1).argmax()].astype(int).tolist()

        width = 2 if self.bf16 else 4
        exchange = bytes_in_transit(self.meta_network, width) if layout.shared else 0
        parts = dict(zip(PARTS, peak, strict=True))
        return Memory(**parts, averages=self.averages * held, exchange=exchange)

    @cached_property
    def meta_network(self) -> nn.Module:
        with torch.device("meta"):
            return build_network(self.spec)


def sum_of_losses(outputs: Tensor | Parts) -> Tensor:
    """Return the squares of a network's predictions, []."""
    predictions = outputs if isinstance(outputs, Parts) else (outputs,)
    return sum(each.float().square().mean() for each in predictions[:2] if each is not None)  # type: ignore[return-value]


def with_moments(
    network: nn.Module, name: str, projector: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer as the trainer has it after a step."""
    config = TrainConfig(optimizer=name)  # type: ignore[arg-type]
    optimizer = build_optimizer(network, config, projector)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def record_existing(
    ledger: "Ledger", network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Iterable[Tensor]
) -> None:
    """Record what exists when a step begins; gradients count as such once they are complete."""
    for parameter in network.parameters():
        ledger.record(parameter, "weights")
        if parameter.grad is not None:
            ledger.record(parameter.grad, "gradients")
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p: ledger.reassign(p.grad, "gradients")
            )
    for moments in optimizer.state.values():
        for tensor in moments.values():
            ledger.record(tensor, "optimizer")
    for tensor in inputs:
        ledger.record(tensor, "activations")


class Ledger(TorchDispatchMode):
    """Bytes of all storages in use, by part, from when they are recorded or allocated.

    It agrees with torch's own `MemTracker`, which takes ten times as long and does not accept
    weights without gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = "activations"  # of storages allocated from now on
        self.rows: list[list[int]] = []
        self._now = [0] * len(PARTS)
        self._known: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # Autocast's bfloat16 copies of weights are a part of their own: FSDP2 needs none.
        copies = func is torch.ops.aten._to_copy.default and self._part_of(args[0]) == "weights"
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.record(tensor, "copies" if copies else self.part)
        return out

    def record(self, tensor: Tensor, part: str) -> None:
        """Count a tensor's storage, unless it is known, until nothing refers to it any more."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._count(part, storage.nbytes())
        self._known[storage._cdata] = part, storage.nbytes()
        weakref.finalize(storage, self._forget, storage._cdata)
        self.rows.append(list(self._now))

    def reassign(self, tensor: Tensor | None, part: str) -> None:
        """Count a known storage to another part."""
        assert tensor is not None
        address = tensor.untyped_storage()._cdata
        before, size = self._known[address]
        self._count(before, -size)
        self._count(part, size)
        self._known[address] = part, size

    def _part_of(self, tensor: Tensor) -> str | None:
        return self._known.get(tensor.untyped_storage()._cdata, (None, 0))[0]

    def _forget(self, address: int) -> None:
        part, size = self._known.pop(address)
        self._count(part, -size)

    def _count(self, part: str, size: int) -> None:
        self._now[PARTS.index(part)] += size


def shard_bytes(network: nn.Module, world: int) -> int:
    """Return the float32 bytes of the largest shard of a network, split along the first axes."""
    numbers = 0
    for p in network.parameters():
        rows = math.ceil(p.shape[0] / world)
        numbers += rows * math.prod(p.shape[1:]) if p.requires_grad else p.numel()
    return 4 * numbers


def held_bytes(network: nn.Module, averages: int, world: int = 1) -> int:
    """Return the bytes of weights, gradients, two moments and averages on one rank."""
    return shard_bytes(network, world) * (4 + averages)


def rough_activations(network: nn.Module, spec: NetworkSpec, images: int) -> int:
    """Return a generous bound on the bytes of activations: all outputs of layers, twice."""
    positions, outputs = math.prod(sides(spec.input_size)), 0
    if isinstance(network, PatchTransformer):
        positions = math.prod(network.grid)
        blocks: Any = network.blocks
        outputs = HEADS * positions * len(blocks)  # attention, where it is not fused
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            outputs += layer.out_features
        elif isinstance(layer, nn.Conv2d):
            outputs += layer.out_channels
    return 2 * 4 * images * positions * outputs


def bytes_in_transit(network: nn.Module, width: int) -> int:
    """Return the bytes of gathered weights and their gradients, `width` each, and float32 sums."""
    blocks: Any = network.blocks
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
    return largest * (GATHERED * width + width + REDUCED * 4)
