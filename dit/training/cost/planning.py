"""The command `dit plan`: which parallelism fits, and what a step costs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from dit.config import PlanConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.dit import SIZES, DiT
from dit.models.registry import blank_inputs, multiply_adds_of, split_name
from dit.training.cost.cluster import Cluster, cluster
from dit.training.cost.memory import RESERVE, Layout, Memory, Step
from dit.training.cost.step_time import Seconds, Work, seconds, traffic
from dit.utils.image_size import sides

FACTOR, CHANNELS, CLASSES = 8, 4, 1000  # of the autoencoder, and of ImageNet
MOST = 4096  # images at once that are tried
GIB = 2**30


def plan(config: PlanConfig, ranks: Ranks) -> None:
    """Print the table."""
    if ranks.main:
        print(describe(config))


# -- the network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A network, known by tensors without data alone."""

    config: PlanConfig
    sizes: dict[str, Any]  # as `DiT` takes them
    step: Step
    courses: dict[bool, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict
    )  # as far as asked for

    @property
    def multiply_adds(self) -> int:
        """Of a forward pass, for an image."""
        with torch.device("meta"):
            return multiply_adds_of(self.step.blank, self.step.inputs(1))

    @property
    def parameters(self) -> int:
        """That are trained."""
        return sum(p.numel() for p in self.step.blank.parameters() if p.requires_grad)

    @property
    def work(self) -> Work:
        """What the equations need to know."""
        again = float(self.config.recompute == "full")
        return Work(
            self.parameters,
            self.sizes["depth"],
            2 * self.multiply_adds,
            again,
            averages=self.config.averages,
        )

    def memory(self, batch: int, layout: Layout) -> Memory:
        """At the peak of a step with so many images at once, which follows from those of two and three."""
        if layout.keeps_gradients not in self.courses:
            known = Layout("ddp", 2) if layout.keeps_gradients else Layout()
            self.courses[layout.keeps_gradients] = (
                self.step.course(2, known),
                self.step.course(3, known),
            )
        two, three = self.courses[layout.keeps_gradients]
        return self.step.peak(two + (batch - 2) * (three - two), layout, self.config.averages)


def planned(config: PlanConfig) -> Planned:
    """The network that the flags name.

    Raises:
        UserError: no DiT, heads that do not divide its width, or an image that its patches do not.
    """
    size, patch = split_name(config.model)
    given = {"depth": config.depth, "hidden_size": config.width, "num_heads": config.heads}
    shape = SIZES[size] | {name: value for name, value in given.items() if value}
    if shape["hidden_size"] % shape["num_heads"] or shape["hidden_size"] % 4:
        raise UserError(
            f"--width {shape['hidden_size']} with --heads {shape['num_heads']}",
            "a width that is a multiple of 4 and of the heads",
            "change one of them",
        )
    if any(side % FACTOR for side in sides(config.image_size)):
        raise UserError(
            f"--image-size {config.image_size}",
            f"a multiple of {FACTOR * patch}",
            "change --image-size",
        )
    height, width = (side // FACTOR for side in sides(config.image_size))
    latents: dict[str, Any] = dict(input_size=(height, width), in_channels=CHANNELS)
    sizes = dict(**latents, patch_size=patch, num_classes=CLASSES, learn_sigma=True, **shape)
    step = Step(
        partial(DiT, **sizes),
        lambda n: blank_inputs(config.model, n, **latents),
        torch.device("cuda"),
        True,
        config.recompute,
    )
    return Planned(config, sizes, step)


# -- a layout of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A network on a cluster, in one way."""

    work: Work
    cluster: Cluster
    layout: Layout
    batch: int  # images of a GPU at once
    memory: Memory
    most: int  # images at once that a GPU has room for; 0: none

    @property
    def fits(self) -> bool:
        """Whether a GPU has room for it."""
        return self.memory.total <= room(self.cluster)

    @property
    def seconds(self) -> Seconds:
        """Of a step."""
        return seconds(
            self.work, self.cluster, self.layout.parallel, self.batch, self.layout.grad_accum
        )

    @property
    def speed(self) -> float:
        """Images a second, of all GPUs."""
        return self.batch * self.layout.grad_accum * self.cluster.gpus / self.seconds.step

    @property
    def mfu(self) -> float:
        """Share of the GPUs' peak that goes into one forward and one backward pass."""
        return 3 * self.work.flops * self.speed / (self.cluster.peak * self.cluster.gpus)


def room(cluster: Cluster) -> float:
    """Bytes of a GPU's memory that a step may have."""
    return (1 - RESERVE) * cluster.memory


def columns(config: PlanConfig, network: Planned) -> Iterable[Column]:
    """Each number of GPUs, each way."""
    for gpus in config.gpus:
        if config.global_batch_size % gpus:
            raise UserError(
                f"--global-batch-size {config.global_batch_size} on --gpus {gpus}",
                f"a multiple of {gpus}",
                "change --global-batch-size",
            )
        for parallel in ways(config, gpus):
            yield column(network, cluster(config, gpus), parallel)


def ways(config: PlanConfig, gpus: int) -> tuple[str, ...]:
    """Those that are asked for; one GPU has nobody to share with."""
    if config.parallel != "auto":
        return (config.parallel,)
    return ("ddp", "fsdp") if gpus > 1 else ("ddp",)


def column(network: Planned, cluster: Cluster, parallel: str) -> Column:
    """With as few micro-batches as memory allows."""
    share = network.config.global_batch_size // cluster.gpus
    for accum in (n for n in range(1, share + 1) if share % n == 0):
        layout = Layout(parallel, cluster.gpus, accum)
        memory = network.memory(share // accum, layout)
        if memory.total <= room(cluster):
            break
    most = largest(network, cluster, Layout(parallel, cluster.gpus))
    return Column(network.work, cluster, layout, share // accum, memory, most)


def largest(network: Planned, cluster: Cluster, layout: Layout) -> int:
    """The most images that fit at once, without accumulation."""
    fits, fails = 0, MOST + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if network.memory(middle, layout).total <= room(cluster):
            fits = middle
        else:
            fails = middle
    return fits


# -- the table -------------------------------------------------------------------------------------------------------


def describe(config: PlanConfig) -> str:
    """Network, hardware, and a column for each layout.

    Raises:
        UserError: flags that do not go together.
    """
    network = planned(config)
    shown = list(columns(config, network))
    body = [(name, *(cell(column) for column in shown)) for name, cell in ROWS.items()]
    if config.parallel == "auto":
        body.append(("quickest that fits", *(chosen(column, shown) for column in shown)))
    body.append(
        (
            f"GPU-hours for {config.images:.4g} images",
            *(
                f"{config.images / c.speed * c.cluster.gpus / 3600:,.0f}" if c.fits else "–"
                for c in shown
            ),
        )
    )
    first = max(len(row[0]) for row in body) + 1
    lines = ["".join([row[0].ljust(first), *(cell.rjust(10) for cell in row[1:])]) for row in body]
    return "\n".join([*head(config, network, shown[0].cluster), "", *lines])


def head(config: PlanConfig, network: Planned, one: Cluster) -> list[str]:
    """What is planned, in words."""
    sizes, macs = network.sizes, network.multiply_adds
    tokens = network.step.blank.pos_embed.shape[1]  # type: ignore[union-attr, index]
    recompute = "" if config.recompute == "none" else f", --recompute {config.recompute}"
    wires = f"{one.nvlink / 1e9:.0f} GB/s in a node, {one.network / 1e9:.0f} between"
    return [
        f"network   {config.model}: {network.parameters / 1e6:,.0f} M trained parameters, {sizes['depth']} blocks of "
        f"{sizes['hidden_size']}, {tokens} tokens; {6 * macs / 1e9:,.0f} GFLOP to train on an image",
        f"GPU       {config.gpu}: {one.peak / 1e12:.0f} TFLOP/s in bf16 of which {one.efficiency:.0%} are taken to be "
        f"reached, {one.memory / GIB:.0f} GiB of which {1 - RESERVE:.0%} are used; {wires}",
        f"step      {config.global_batch_size} images, bf16{recompute}",
    ]


def chosen(column: Column, shown: list[Column]) -> str:
    """A mark for the quickest way that fits, of those on as many GPUs."""
    rivals = [other for other in shown if other.cluster.gpus == column.cluster.gpus and other.fits]
    return "*" if rivals and min(rivals, key=lambda other: other.seconds.step) is column else ""


def part(name: str) -> Any:
    """A row of memory, in GiB."""
    return lambda column: f"{asdict(column.memory)[name] / GIB:.2f}"


ROWS: dict[str, Any] = {
    "GPUs": lambda c: str(c.cluster.gpus),
    "parallel": lambda c: c.layout.parallel,
    "images a GPU at once": lambda c: str(c.batch),
    "micro-batches": lambda c: str(c.layout.grad_accum),
    "GiB: weights": part("weights"),
    "  EMA": part("averages"),
    "  AdamW": part("optimizer"),
    "  gradients": part("gradients"),
    "  weights in bf16": part("copies"),
    "  activations": part("activations"),
    "  backward pass": part("temporaries"),
    "  exchange": part("exchange"),
    "  in all": lambda c: f"{c.memory.total / GIB:.2f}",
    "fits": lambda c: "yes" if c.fits else "no",
    "most images at once": lambda c: f"{c.most}{'+' * (c.most == MOST)}",
    "GB sent a GPU": lambda c: (
        f"{traffic(c.work, c.cluster.gpus, c.layout.parallel, c.layout.grad_accum) / 1e9:.2f}"
    ),
    "ms: computing": lambda c: f"{1e3 * c.seconds.compute:.1f}",
    "  AdamW and EMA": lambda c: f"{1e3 * c.seconds.update:.1f}",
    "  communication": lambda c: f"{1e3 * c.seconds.communication:.1f}",
    "  of it exposed": lambda c: f"{1e3 * c.seconds.exposed:.1f}",
    "  step": lambda c: f"{1e3 * c.seconds.step:.1f}",
    "images/s": lambda c: f"{c.speed:,.0f}",
    "MFU": lambda c: f"{c.mfu:.1%}",
}
"""What each column says."""
