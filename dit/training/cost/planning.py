"""Memory, communication and time of a training by number of GPUs, for `--dry-run --gpus`."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch

from dit.build import count_multiply_adds
from dit.errors import UserError
from dit.models.dit import PatchTransformer
from dit.runs.card import ModelCard
from dit.training.cost.cluster import Cluster, build_cluster
from dit.training.cost.flops import more_forward_passes
from dit.training.cost.memory import PART_NAMES, RESERVE, Layout, Memory, blocks_of, simulated_step
from dit.training.cost.step_time import Seconds, Work, seconds, traffic
from dit.training.optimizer import optimizer_flops

MOST = 4096  # images at once that are tried
GIB = 2**30


class PlannedStep:
    """A training step of any batch and layout, known from tensors without data.

    Args:
        frozen: bytes of networks that are not trained.
        alignment: FLOPs of --align for one image, in the mean of all steps.
    """

    def __init__(
        self, card: ModelCard, text_tokens: int = 0, frozen: int = 0, alignment: float = 0.0
    ):
        self.card = card
        self.frozen = frozen
        self.alignment = alignment
        self.bf16 = card.config.precision != "fp32"
        # whatever this machine has: the GPUs of --gpu are meant
        device = torch.device("cuda")
        self.step = simulated_step(card.network, card.config, device, self.bf16, text_tokens)
        self._timelines: dict[bool, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def work(self) -> Work:
        network = self.step.meta_network
        step = self.step
        config = self.card.config
        flops = 2 * count_multiply_adds(step.spec, step.text_tokens, step.route, step.parts)
        return Work(
            parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
            blocks=len(blocks_of(network)),
            flops=flops,
            again=float(config.recompute == "full"),
            beside=more_forward_passes(config) + self.alignment / flops,
            width=2 if self.bf16 else 4,
            averages=step.averages,
            optimizer=optimizer_flops(network, config),
        )

    def memory(self, batch: int, layout: Layout) -> Memory:
        # Storages grow in proportion to the batch: all batches follow from those of two and three.
        gradients = layout.keeps_gradients
        # A step takes seconds to simulate, and bisection asks for many batches.
        if gradients not in self._timelines:
            like = Layout("ddp", 2) if gradients else Layout()
            self._timelines[gradients] = self.step.timeline(2, like), self.step.timeline(3, like)
        two, three = self._timelines[gradients]
        return self.step.peak(two + (batch - 2) * (three - two), layout)

    def fits(self, memory: Memory, cluster: Cluster) -> bool:
        return memory.total + self.frozen <= (1 - RESERVE) * cluster.memory

    def largest_batch(self, cluster: Cluster, layout: Layout) -> int:
        """Return the most images at once that fit, by bisection."""
        fits = 0
        fails = MOST + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self.fits(self.memory(middle, layout), cluster):
                fits = middle
            else:
                fails = middle
        return fits


@dataclass(frozen=True)
class Column:
    """A training on a cluster, in one layout."""

    work: Work
    cluster: Cluster
    layout: Layout
    batch: int  # images of a GPU at once
    memory: Memory
    frozen: int  # bytes
    fits: bool
    most: int  # images at once that fit; 0: none

    @property
    def seconds(self) -> Seconds:
        layout = self.layout
        return seconds(self.work, self.cluster, layout.parallel, self.batch, layout.grad_accum)

    @property
    def speed(self) -> float:
        return self.batch * self.layout.grad_accum * self.cluster.gpus / self.seconds.step

    @property
    def mfu(self) -> float:
        # one forward and one backward pass, as papers count it, and those beside:
        # recomputed work is not useful
        return (
            (3 + self.work.beside)
            * self.work.flops
            * self.speed
            / (self.cluster.peak * self.cluster.gpus)
        )

    @property
    def sent(self) -> float:
        layout = self.layout
        return traffic(self.work, self.cluster.gpus, layout.parallel, layout.grad_accum)


def build_columns(step: PlannedStep) -> Iterator[Column]:
    """Yield a column for each number of GPUs and each layout, with the fewest micro-batches."""
    config = step.card.config
    work = step.work
    for gpus in config.gpus:
        if config.global_batch_size % gpus:
            raise UserError(
                f"--batch-size {config.global_batch_size} on --gpus {gpus}",
                f"a multiple of {gpus}",
                f"pass --batch-size {gpus * max(1, config.global_batch_size // gpus)}",
            )
        cluster = build_cluster(config.gpu, gpus, step.bf16)
        both = ("ddp", "fsdp") if gpus > 1 else ("ddp",)
        for parallel in both if config.parallel == "auto" else (config.parallel,):
            yield build_column(step, work, cluster, parallel)


def build_column(step: PlannedStep, work: Work, cluster: Cluster, parallel: str) -> Column:
    """Return the column whose micro-batches are as few as memory allows."""
    share = step.card.config.global_batch_size // cluster.gpus
    for accum in divisors(share):
        batch = share // accum
        layout = Layout(parallel, cluster.gpus, accum)
        memory = step.memory(batch, layout)
        fits = step.fits(memory, cluster)
        if fits:
            break

    most = step.largest_batch(cluster, Layout(parallel, cluster.gpus))
    return Column(work, cluster, layout, batch, memory, step.frozen, fits, most)


def divisors(number: int) -> list[int]:
    """Return all divisors in increasing order, in the time of the number's square root."""
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


# -- the table -------------------------------------------------------------------------------------


def scaling_table(step: PlannedStep, images: int) -> str:
    """Return the table with a column for each layout, for a training on so many images."""
    columns = list(build_columns(step))
    rows = [(name, [cell(column) for column in columns]) for name, cell in ROWS.items()]
    if step.card.config.parallel == "auto":
        rows.append(("fastest that fits", [fastest_mark(c, columns) for c in columns]))
    rows.append((f"GPU-hours for {images:,} images", [gpu_hours(c, images) for c in columns]))

    left = max(len(name) for name, _ in rows) + 1
    lines = [name.ljust(left) + "".join(cell.rjust(10) for cell in cells) for name, cells in rows]
    return "\n".join([gpu_line(step, columns[0].cluster), "", *lines])


def gpu_line(step: PlannedStep, cluster: Cluster) -> str:
    """Return what is assumed of a GPU, in words."""
    peak = f"{cluster.peak / 1e12:.0f} TFLOP/s in {'bf16' if step.bf16 else 'fp32'}"
    memory = f"{cluster.memory / GIB:.0f} GiB"
    links = f"{cluster.nvlink / 1e9:.0f} GB/s in a node, {cluster.network / 1e9:.0f} between"
    # a U-Net's blocks differ in size, those of transformers do not
    transformer = isinstance(step.step.meta_network, PatchTransformer)
    blocks = "" if transformer else "; blocks taken as equal"
    return (
        f"{'GPU':<10} {step.card.config.gpu}: {peak}, {cluster.efficiency:.0%} of it assumed; "
        f"{memory}, {1 - RESERVE:.0%} of it used; {links}{blocks}"
    )


def fastest_mark(column: Column, columns: list[Column]) -> str:
    same = [c for c in columns if c.cluster.gpus == column.cluster.gpus and c.fits]
    return "*" if same and min(same, key=lambda c: c.seconds.step) is column else ""


def gpu_hours(column: Column, images: int) -> str:
    hours = images / column.speed * column.cluster.gpus / 3600
    if not column.fits:
        return "–"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def in_gib(name: str) -> Callable[[Column], str]:
    return lambda column: f"{asdict(column.memory)[name] / GIB:.2f}"


ROWS: dict[str, Callable[[Column], str]] = {
    "GPUs": lambda c: str(c.cluster.gpus),
    "parallel": lambda c: c.layout.parallel,
    "images a GPU at once": lambda c: str(c.batch),
    "micro-batches": lambda c: str(c.layout.grad_accum),
    **{f"GiB: {words}": in_gib(name) for name, words in PART_NAMES.items()},
    "GiB: frozen networks": lambda c: f"{c.frozen / GIB:.2f}",
    "GiB in all": lambda c: f"{(c.memory.total + c.frozen) / GIB:.2f}",
    "fits": lambda c: "yes" if c.fits else "no",
    "most images at once": lambda c: f"{c.most}{'+' * (c.most == MOST)}",
    "GB sent a GPU": lambda c: f"{c.sent / 1e9:.2f}",
    "ms: computing": lambda c: f"{1e3 * c.seconds.compute:.1f}",
    "ms: optimizer and EMA": lambda c: f"{1e3 * c.seconds.update:.1f}",
    "ms: communication": lambda c: f"{1e3 * c.seconds.communication:.1f}",
    "ms: of it exposed": lambda c: f"{1e3 * c.seconds.exposed:.1f}",
    "ms a step": lambda c: f"{1e3 * c.seconds.step:.1f}",
    "images/s": lambda c: f"{c.speed:,.0f}",
    "MFU": lambda c: f"{c.mfu:.1%}",
}
"""The cells of each row."""
