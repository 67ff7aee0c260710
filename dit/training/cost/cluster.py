"""GPUs, and the wires between them."""

import math
from dataclasses import dataclass, replace
from typing import Any

from dit.config import PlanConfig
from dit.errors import UserError
from dit.training.cost.flops import data_sheet

START = 14e-6  # seconds of a collective before its first byte, and below of each hop: NCCL's table for LL128
RING = {"node": 1.9e-6, "network": 4.0e-6}
TREE = {"node": 1.25e-6, "network": 8.5e-6}


@dataclass(frozen=True)
class Cluster:
    """Equal GPUs in equal nodes, and seconds of their collectives; bandwidths in bytes a second, one way, of a GPU."""

    gpus: int
    peak: float  # FLOP/s in bfloat16, dense
    memory: float  # bytes
    hbm: float  # bandwidth of that memory
    nvlink: float  # to other GPUs of the node
    network: float  # to other nodes
    per_node: int = 8
    efficiency: float = 0.4  # share of the peak that is reached
    overlap: bool = True  # whether GPUs compute while they communicate

    @property
    def local(self) -> int:
        """GPUs of a node."""
        return min(self.gpus, self.per_node)

    @property
    def nodes(self) -> int:
        """How many there are."""
        return math.ceil(self.gpus / self.per_node)

    @property
    def bandwidth(self) -> float:
        """Of the slowest wire of rings through all GPUs, one ring for each network card of a node."""
        return self.nvlink if self.nodes == 1 else min(self.nvlink, self.local * self.network)

    def gather(self, size: float) -> float:
        """Seconds until every GPU has all `size` bytes, of which it had a share; a reduce-scatter takes as long."""
        if self.gpus == 1:
            return 0.0
        hops = (self.gpus - self.nodes) * RING["node"] + (self.nodes - 1) * RING["network"]
        return START + hops + (self.gpus - 1) / self.gpus * size / self.bandwidth

    def reduce(self, size: float) -> float:
        """Seconds until every GPU has the sum of all GPUs' `size` bytes, through a tree."""
        if self.gpus == 1:
            return 0.0
        hops = (self.local - 1) * TREE["node"] + math.log2(self.nodes) * TREE["network"]
        return START + 2 * hops + 2 * (self.gpus - 1) / self.gpus * size / self.bandwidth


USED = 0.8  # share of a wire's bandwidth that collectives reach
GPUS: dict[str, dict[str, float]] = {
    "a100": dict(memory=80 * 2**30, hbm=2.0e12, nvlink=300e9, network=25e9),
    "h100": dict(memory=80 * 2**30, hbm=3.35e12, nvlink=450e9, network=50e9),
    "h200": dict(memory=141e9, hbm=4.8e12, nvlink=450e9, network=50e9),
    "b200": dict(memory=180e9, hbm=7.7e12, nvlink=900e9, network=50e9),
}
"""Data sheets of the SXM modules; network: a card for each GPU, of 200 Gbit/s with A100s, of 400 with the others."""


def cluster(config: PlanConfig, gpus: int) -> Cluster:
    """So many GPUs of the kind that the flags tell of.

    Raises:
        UserError: nodes that are neither full nor alone.
    """
    if gpus > config.gpus_per_node and gpus % config.gpus_per_node:
        raise UserError(
            f"--gpus {gpus} with --gpus-per-node {config.gpus_per_node}",
            f"a multiple of {config.gpus_per_node}",
            "change one of them",
        )
    given: dict[str, Any] = {
        "peak": config.tflops and config.tflops * 1e12,
        "memory": config.memory and config.memory * 2**30,
        "nvlink": config.nvlink and config.nvlink * 1e9,
        "network": config.network and config.network * 1e9,
    }
    kind: dict[str, Any] = {"peak": data_sheet(config.gpu.upper(), bf16=True), **GPUS[config.gpu]}
    kind |= {name: value for name, value in given.items() if value}
    wires = {name: USED * kind[name] for name in ("nvlink", "network")}
    return replace(
        Cluster(gpus=gpus, **kind),
        **wires,
        per_node=config.gpus_per_node,
        efficiency=config.efficiency,
    )
