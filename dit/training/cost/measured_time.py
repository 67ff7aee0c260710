"""Seconds of a training step on this machine: a few are taken, on images of noise."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from dit.build import build_network, count_multiply_adds
from dit.config import TrainConfig
from dit.distributed.device import autocast, choose_attention, free_memory, uses_bf16
from dit.distributed.ranks import Ranks
from dit.latents.on_the_fly import OnlineLatents
from dit.latents.store import Latents
from dit.models.registry import zero_inputs
from dit.runs.card import NetworkSpec
from dit.training.cost.flops import more_forward_passes, peak_of, plain_flops, training_flops
from dit.training.cost.memory import (
    Layout,
    held_bytes,
    rough_activations,
    simulated_step,
    sum_of_losses,
)
from dit.training.monitoring.previews import images_of_grid, passes_per_image
from dit.training.optimizer import build_optimizer, optimizer_flops

TIMED, LEAST_TIMED = 6, 2  # calls
ENOUGH = 10.0  # seconds after which no further step is timed
READ = 16  # images, to time how they are read and encoded
HEAVY = 2e11  # FLOPs of an image, from which a step on a CPU takes too long to be tried
USUAL_SHARE = 0.4  # of the peak, that a training reaches
ROOM = 0.8  # share of the free memory up to which a network is built to be timed
BESIDE = 1.05  # the EMA, the guard and the log, which no timed step has


@dataclass(frozen=True)
class Pace:
    """Speed of a training.

    Attributes:
        step: Seconds of a step, with the reading of its images if they are not kept.
        once: Seconds to encode images that are kept from then on.
        grid: Seconds of a grid of samples.
        align: Seconds more of a step while --align lasts.
        timed: Whether steps were taken and timed; else all follows from FLOPs.
    """

    step: float
    once: float = 0.0
    grid: float = 0.0
    align: float = 0.0
    timed: bool = False

    def steps_in(self, seconds: float, grids: int = 0) -> int:
        """Return the steps beside so many grids; at least half of the seconds are for steps."""
        return int(max(seconds - self.once - grids * self.grid, seconds / 2) / self.step)


def measure_pace(
    spec: NetworkSpec,
    config: TrainConfig,
    source: Latents,
    text_tokens: int,
    ranks: Ranks,
    alignment: float = 0.0,
) -> Pace:
    """Return the speed of the slowest rank; all ranks call it.

    Args:
        alignment: FLOPs of --align for one image, while it lasts.
    """
    pace = None
    if can_be_timed(spec, config, text_tokens, ranks):
        pace = timed_pace(spec, config, source, text_tokens, ranks, alignment)
    if pace is None:
        pace = expected_pace(spec, config, source, text_tokens, ranks, alignment)

    if isinstance(source, OnlineLatents):
        per_image = seconds_to_read(source)
        # to decode an image takes about as long
        pace = replace(
            pace, grid=pace.grid + images_of_grid(count_classes(spec, source)) * per_image
        )
        if source.keeps:
            # each rank encodes nearly all: it takes other images in each epoch
            pace = replace(pace, once=per_image * source.views * len(source.labels))
        else:
            images = config.global_batch_size / ranks.world
            pace = replace(pace, step=pace.step + per_image * images)
    seconds = torch.tensor([pace.step, pace.once, pace.grid, pace.align, not pace.timed])
    step, once, grid, align, expected = ranks.max(seconds.to(ranks.device)).tolist()
    return Pace(step, once, grid, align, timed=not expected)


def expected_pace(
    spec: NetworkSpec,
    config: TrainConfig,
    source: Latents,
    text_tokens: int,
    ranks: Ranks,
    alignment: float = 0.0,
) -> Pace:
    """Return the speed by the FLOPs of a step and the peak of this device.

    Args:
        alignment: FLOPs of --align for one image, while it lasts.
    """
    with torch.device("meta"):
        network = build_network(spec)
    images = config.global_batch_size / ranks.world
    step = images * training_flops(spec, config, text_tokens) + optimizer_flops(network, config)
    forward = 2 * count_multiply_adds(spec, text_tokens)
    reached = USUAL_SHARE * peak_of(ranks.device, uses_bf16(ranks.device, config.precision)).flops
    grid = grid_seconds(forward / reached, spec, config, source)
    return Pace(step / reached, grid=grid, align=images * alignment / reached)


def timed_pace(
    spec: NetworkSpec,
    config: TrainConfig,
    source: Latents,
    text_tokens: int,
    ranks: Ranks,
    alignment: float = 0.0,
) -> Pace | None:
    """Return the speed of a network like the one to be trained; None: out of memory.

    Only one pass forward and backward is timed. What MeanFlow and --align compute beside takes as
    long as its FLOPs would there.

    Args:
        alignment: FLOPs of --align for one image, while it lasts.
    """
    images = config.global_batch_size // (ranks.world * config.grad_accum)
    try:
        step, forward = timed_work(spec, config, images, text_tokens, ranks.device)
        seconds = BESIDE * config.grad_accum * fastest_seconds(step, ranks.device)
        per_image = fastest_seconds(forward, ranks.device) / images
    except torch.OutOfMemoryError:
        return None  # a check of its own says later what would fit
    return Pace(
        step=seconds * (1 + more_forward_passes(config) / 3),
        grid=grid_seconds(per_image, spec, config, source),
        align=seconds * alignment / plain_flops(spec, config, text_tokens),
        timed=True,
    )


def grid_seconds(forward: float, spec: NetworkSpec, config: TrainConfig, source: Latents) -> float:
    """Return the seconds of a grid, by those of a forward pass for one image."""
    classes = count_classes(spec, source)
    return images_of_grid(classes) * passes_per_image(config, classes) * forward


def count_classes(spec: NetworkSpec, source: Latents) -> int:
    """Return how many classes a grid may show; 0: the network knows none."""
    return len(source.classes) if spec.num_classes or spec.text_width else 0


def can_be_timed(spec: NetworkSpec, config: TrainConfig, text_tokens: int, ranks: Ranks) -> bool:
    """Whether a plain step of the network can be taken beforehand, soon and in memory."""
    flops = plain_flops(spec, config, text_tokens)
    is_light = flops < HEAVY or ranks.device.type == "cuda"
    # no timed step shares the network, or computes activations again
    is_usual = config.parallel != "fsdp" and config.recompute == "none"
    return is_light and is_usual and fits_in_memory(spec, config, text_tokens, ranks)


def fits_in_memory(spec: NetworkSpec, config: TrainConfig, text_tokens: int, ranks: Ranks) -> bool:
    """Whether a step has room in memory: on a CPU the system ends a process that takes too much.

    What has none is refused, or shared among ranks, once the plan of the run is known.
    """
    room = ROOM * free_memory(ranks.device)
    images = config.global_batch_size // (ranks.world * config.grad_accum)
    with torch.device("meta"):
        network = build_network(spec)
    held = held_bytes(network, averages=0)
    if held > room:
        return False
    if held + rough_activations(network, spec, images) <= room:
        return True

    # the exact count takes seconds, so it is made only where the rough bound does not do
    bf16 = uses_bf16(ranks.device, config.precision)
    step = simulated_step(spec, config, ranks.device, bf16, text_tokens)
    return step.memory(images, Layout()).total <= room


def timed_work(
    spec: NetworkSpec, config: TrainConfig, images: int, text_tokens: int, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return functions that take a step, and a forward pass, of a network like that to be
    trained."""
    # the initial weights of training come from torch's generator, which must not notice; they are
    # drawn on the CPU, and the states of many GPUs take time
    with torch.random.fork_rng(devices=[]):
        network = build_network(spec)
    choose_attention(network, device, config.precision)
    network.to(device)
    optimizer = build_optimizer(network, config)
    inputs = zero_inputs(
        spec.model, images, text_tokens, config.route, config.reads_parts, **spec.sizes
    )
    moved = [part.to(device) if isinstance(part, torch.Tensor) else part for part in inputs]

    def step() -> None:
        with autocast(device, config.precision):
            loss = sum_of_losses(network(*moved))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def forward() -> None:
        with torch.no_grad(), autocast(device, config.precision):
            network(*moved)

    return step, forward


def fastest_seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of the fastest of some calls: other programs slow the rest."""
    work()  # the first call prepares memory and kernels, and may take many times as long
    begun = time.perf_counter()
    seconds: list[float] = []
    for number in range(1, TIMED + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        if number >= LEAST_TIMED and time.perf_counter() - begun > ENOUGH:
            break
    return min(seconds)


def seconds_to_read(source: OnlineLatents) -> float:
    """Return the seconds to read and encode an image, in a batch of a few."""
    indices = np.arange(min(READ, len(source.labels)))
    flip = np.zeros(len(indices), dtype=bool)
    source.encode(indices, flip)  # the first call is slower
    start = time.perf_counter()
    source.encode(indices, flip)
    return (time.perf_counter() - start) / len(indices)
