"""Seconds and bytes of a training step on a cluster (docs/scaling.md has the equations).

P parameters in L equal blocks, N GPUs. Not counted is that Muon has one moment where AdamW has two,
and that FSDP2 gathers its steps.
"""

import math
from dataclasses import dataclass

from dit.training.cost.cluster import Cluster

BUCKET = 25 * 2**20  # bytes of gradients that DDP reduces at once
UPDATE = 40  # bytes per parameter that clipping (12) and AdamW (28) read and write
EMA = 12  # bytes per parameter that each average reads and writes
FLOAT = 4  # bytes of a gradient in transit


@dataclass(frozen=True)
class Work:
    """What a network costs."""

    parameters: int  # that are trained
    blocks: int
    flops: float  # of a forward pass for one image
    again: float = 0.0  # share of a forward pass that the backward pass computes again
    beside: float = 0.0  # forward passes beside that with a gradient: of the loss, of --align
    width: int = 2  # bytes of a weight that FSDP gathers
    averages: int = 1  # EMAs
    optimizer: float = 0.0  # FLOPs of its matrix products in a step, on every GPU

    @property
    def updated(self) -> int:
        # of clipping, optimizer and averages, read and written
        return (UPDATE + EMA * self.averages) * self.parameters


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step, by part."""

    compute: float
    update: float  # of optimizer and EMA
    communication: float  # in all
    exposed: float  # part of communication that no computation hides

    @property
    def step(self) -> float:
        return self.compute + self.update + self.exposed


def seconds(work: Work, cluster: Cluster, parallel: str, batch: int, accum: int) -> Seconds:
    """Return the time of a step with `accum` micro-batches of `batch` images a GPU."""
    # docs/scaling.md: t_f, t_b and t_u
    reached = cluster.peak * cluster.efficiency
    forward = batch * work.flops / reached
    backward = forward * (2 + work.again)
    share = cluster.gpus if parallel == "fsdp" else 1
    update = work.updated / share / cluster.hbm + work.optimizer / reached

    communicate = exposed_fsdp if parallel == "fsdp" else exposed_ddp
    spent, exposed = communicate(work, cluster, forward, backward, accum)
    compute = accum * ((1 + work.beside) * forward + backward)
    return Seconds(compute, update, spent, exposed)


def exposed_ddp(
    work: Work, cluster: Cluster, forward: float, backward: float, accum: int
) -> tuple[float, float]:
    """Return the seconds of DDP's communication, and those exposed."""
    size = FLOAT * work.parameters
    buckets = math.ceil(size / BUCKET)
    bucket = cluster.reduce(size / buckets)
    spent = buckets * bucket
    # Buckets are reduced during the last backward pass. The last bucket is always exposed.
    return spent, max(spent - backward, bucket) if cluster.overlap else spent


def exposed_fsdp(
    work: Work, cluster: Cluster, forward: float, backward: float, accum: int
) -> tuple[float, float]:
    """Return the seconds of FSDP2's communication, and those exposed."""
    block = work.parameters / work.blocks
    gather = cluster.gather(work.width * block)
    scatter = cluster.gather(FLOAT * block)
    spent = work.blocks * (2 * accum * gather + scatter)
    if not cluster.overlap:
        return spent, spent

    # In both passes of every micro-batch a block's weights arrive while the block before computes.
    forward_block = forward / work.blocks
    backward_block = backward / work.blocks
    late_forward = max(0.0, gather - forward_block)
    late_backward = max(0.0, gather - backward_block)
    # After the last micro-batch gradients leave at the same time.
    late_last = max(0.0, gather + scatter - backward_block)
    rest = work.blocks - 1
    # Nothing hides the first weights of a pass, nor the last gradients.
    exposed = accum * (2 * gather + rest * late_forward)
    exposed += rest * ((accum - 1) * late_backward + late_last)
    return spent, exposed + scatter


def traffic(work: Work, gpus: int, parallel: str, accum: int) -> float:
    """Return the bytes that a GPU sends in a step."""
    per_parameter = 2 * FLOAT if parallel == "ddp" else 2 * work.width * accum + FLOAT
    return (gpus - 1) / gpus * work.parameters * per_parameter
