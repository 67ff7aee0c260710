"""GPUs and the links between them: seconds of a collective (docs/scaling.md has the equations)."""

import math
from dataclasses import dataclass

from dit.errors import UserError
from dit.training.cost.flops import data_sheet

# Latencies in seconds, from which NCCL chooses its algorithms (src/graph/tuning.cc, LL128):
START = 14e-6  # of a collective, before its first byte
RING = {"node": 1.9e-6, "network": 4.0e-6}  # of a hop of a ring
TREE = {"node": 1.25e-6, "network": 8.5e-6}  # of a hop of a tree

GPUS_PER_NODE = 8  # that NVLink connects, as in HGX and DGX machines
LINK_EFFICIENCY = 0.8  # share of a link's bandwidth that collectives reach
EFFICIENCY = 0.4  # share of the peak in training: DiT-XL/2 reached 0.43 on an H200
GPUS: dict[str, dict[str, float]] = {
    "a100": dict(memory=80 * 2**30, hbm=2.0e12, nvlink=300e9, network=25e9),
    "h100": dict(memory=80 * 2**30, hbm=3.35e12, nvlink=450e9, network=50e9),
    "h200": dict(memory=141e9, hbm=4.8e12, nvlink=450e9, network=50e9),
    "b200": dict(memory=180e9, hbm=7.7e12, nvlink=900e9, network=50e9),
}
"""Data sheets of the SXM modules. Each GPU has a network card: 200 Gbit/s with A100, else 400."""


@dataclass(frozen=True)
class Cluster:
    """Equal GPUs in equal nodes. Bandwidths are bytes per second and GPU, in one direction."""

    gpus: int
    peak: float  # FLOP/s, dense
    memory: float  # bytes
    hbm: float  # bandwidth of that memory
    nvlink: float  # to other GPUs of the node
    network: float  # to other nodes
    per_node: int = GPUS_PER_NODE
    efficiency: float = EFFICIENCY
    overlap: bool = True  # whether GPUs compute while they communicate

    @property
    def local(self) -> int:
        return min(self.gpus, self.per_node)

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / self.per_node)

    @property
    def bandwidth(self) -> float:
        # of rings through all GPUs: each network card of a node carries a ring of its own
        return self.nvlink if self.nodes == 1 else min(self.nvlink, self.local * self.network)

    def gather(self, size: float) -> float:
        """Return the seconds of an all-gather of `size` bytes in all, or of a reduce-scatter."""
        # docs/scaling.md, t_gather
        if self.gpus == 1:
            return 0.0
        hops = (self.gpus - self.nodes) * RING["node"] + (self.nodes - 1) * RING["network"]
        return START + hops + (self.gpus - 1) / self.gpus * size / self.bandwidth

    def reduce(self, size: float) -> float:
        """Return the seconds of an all-reduce of `size` bytes through a tree."""
        # docs/scaling.md, t_reduce
        if self.gpus == 1:
            return 0.0
        hops = (self.local - 1) * TREE["node"] + math.log2(self.nodes) * TREE["network"]
        return START + 2 * hops + 2 * (self.gpus - 1) / self.gpus * size / self.bandwidth


def build_cluster(gpu: str, gpus: int, bf16: bool) -> Cluster:
    """Return so many GPUs of a kind, in full nodes or in one."""
    if gpus > GPUS_PER_NODE and gpus % GPUS_PER_NODE:
        raise UserError(
            f"--gpus {gpus}",
            f"{GPUS_PER_NODE} or fewer, or a multiple of {GPUS_PER_NODE}: full nodes",
            "change --gpus",
        )
    peak = data_sheet(gpu.upper(), bf16)
    assert peak, "all kinds of --gpu have a data sheet"
    sheet = GPUS[gpu]
    return Cluster(
        gpus,
        peak,
        memory=sheet["memory"],
        hbm=sheet["hbm"],
        nvlink=LINK_EFFICIENCY * sheet["nvlink"],
        network=LINK_EFFICIENCY * sheet["network"],
    )
