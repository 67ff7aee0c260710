"""Seconds and bytes of a training step on a cluster (docs/scaling.md has the equations).

P parameters in L equal blocks, N GPUs.
"""

import math
from dataclasses import dataclass

from dit.training.cost.cluster import Cluster

BUCKET = 25 * 2**20  # bytes that DDP reduces at once
UPDATE, EMA = (
    40,
    12,
)  # bytes a parameter read and written by clipping (12) and AdamW (28), and by each average
FLOAT = 4  # bytes of a gradient on its way


@dataclass(frozen=True)
class Work:
    """What the network asks for."""

    parameters: int  # that are trained
    blocks: int
    flops: float  # of a forward pass, an image
    again: float = 0.0  # share of a forward pass that the backward pass computes again
    width: int = 2  # bytes of a weight as FSDP gathers it
    averages: int = 1  # EMAs

    @property
    def updated(self) -> int:
        """Bytes that clipping, optimizer and averages read and write."""
        return (UPDATE + EMA * self.averages) * self.parameters


@dataclass(frozen=True)
class Seconds:
    """Of a step."""

    compute: float
    update: float  # of optimizer and EMA
    communication: float  # in all
    exposed: float  # of it, what nothing hides

    @property
    def step(self) -> float:
        """All of it."""
        return self.compute + self.update + self.exposed


def seconds(work: Work, cluster: Cluster, parallel: str, batch: int, accum: int) -> Seconds:
    """Of a step with `accum` micro-batches of `batch` images a GPU."""
    forward = batch * work.flops / (cluster.peak * cluster.efficiency)
    backward = forward * (2 + work.again)
    share = cluster.gpus if parallel == "fsdp" else 1
    update = work.updated / share / cluster.hbm
    cost = exposed_fsdp if parallel == "fsdp" else exposed_ddp
    return Seconds(
        accum * (forward + backward), update, *cost(work, cluster, forward, backward, accum)
    )


def exposed_ddp(
    work: Work, cluster: Cluster, forward: float, backward: float, accum: int
) -> tuple[float, float]:
    """Seconds of communication, and those exposed: buckets follow the last backward pass, the last one alone."""
    size = FLOAT * work.parameters
    buckets = math.ceil(size / BUCKET)
    bucket = cluster.reduce(size / buckets)
    spent = buckets * bucket
    return spent, max(spent - backward, bucket) if cluster.overlap else spent


def exposed_fsdp(
    work: Work, cluster: Cluster, forward: float, backward: float, accum: int
) -> tuple[float, float]:
    """The same: each block's weights come while the block before it computes, in both passes of every micro-batch, and
    its gradients go after the last; for the first weights of a pass and the last gradients all wait."""
    block, rest = work.parameters / work.blocks, work.blocks - 1
    gather, scatter = cluster.gather(work.width * block), cluster.gather(FLOAT * block)
    spent = work.blocks * (2 * accum * gather + scatter)
    if not cluster.overlap:
        return spent, spent
    ahead = max(0.0, gather - forward / work.blocks)
    behind, last = (
        max(0.0, moved - backward / work.blocks) for moved in (gather, gather + scatter)
    )
    return spent, accum * (2 * gather + rest * ahead) + rest * (
        (accum - 1) * behind + last
    ) + scatter


def traffic(work: Work, gpus: int, parallel: str, accum: int) -> float:
    """Bytes that a GPU sends in a step."""
    per_parameter = 2 * FLOAT if parallel == "ddp" else 2 * work.width * accum + FLOAT
    return (gpus - 1) / gpus * work.parameters * per_parameter
