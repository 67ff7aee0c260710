"""Seconds of a training step on this machine: a few are taken, on images of noise."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dit.build import build_network
from dit.config import TrainConfig
from dit.distributed.device import autocast, choose_attention, uses_bf16
from dit.distributed.ranks import Ranks
from dit.latents.on_the_fly import OnlineLatents
from dit.latents.store import Latents
from dit.models.registry import zero_inputs
from dit.runs.card import NetworkSpec
from dit.training.cost.flops import more_forward_passes, peak_of, training_flops
from dit.training.cost.memory import sum_of_losses
from dit.training.optimizer import build_optimizer

TIMED = 6  # steps
ENOUGH = 10.0  # seconds after which no further step is timed
READ = 16  # images, to time how they are read and encoded
HEAVY = 2e11  # FLOPs of an image, from which a step on a CPU takes too long to be tried
USUAL_SHARE = 0.4  # of the peak, that a training reaches
BESIDE = 1.05  # the EMA, the guard and the log, which no timed step has


@dataclass(frozen=True)
class Pace:
    """Speed of a training.

    Attributes:
        step: Seconds of a step, with the reading of its images if they are not kept.
        once: Seconds to encode images that are kept from then on.
    """

    step: float
    once: float = 0.0

    def steps_in(self, seconds: float) -> int:
        """Return the steps of so many seconds; at least half of them are for steps."""
        return int(max(seconds - self.once, seconds / 2) / self.step)


def measure_pace(
    spec: NetworkSpec, config: TrainConfig, source: Latents, text_tokens: int, ranks: Ranks
) -> Pace:
    """Return the speed of the slowest rank; all ranks call it."""
    share = config.global_batch_size // (ranks.world * config.grad_accum)
    flops = training_flops(spec, text_tokens, config.route, more_forward_passes(config))
    if flops < HEAVY or ranks.device.type == "cuda":
        work = timed_step(spec, config, share, text_tokens, ranks.device)
        step = BESIDE * config.grad_accum * fastest_seconds(work, ranks.device)
    else:
        step = expected_seconds(flops, config, ranks)

    once = 0.0
    if isinstance(source, OnlineLatents):
        per_image = seconds_to_read(source)
        if source.keeps:
            views = 2 if source.flips else 1
            once = per_image * views * len(source.labels) / ranks.world
        else:
            step += per_image * config.global_batch_size / ranks.world
    slowest = ranks.max(torch.tensor([step, once], device=ranks.device)).tolist()
    return Pace(*slowest)


def expected_seconds(flops: float, config: TrainConfig, ranks: Ranks) -> float:
    """Return the seconds of a step, by the FLOPs of an image and the peak of this device."""
    peak = peak_of(ranks.device, uses_bf16(ranks.device, config.precision))
    return config.global_batch_size / ranks.world * flops / (USUAL_SHARE * peak.flops)


def timed_step(
    spec: NetworkSpec, config: TrainConfig, images: int, text_tokens: int, device: torch.device
) -> Callable[[], None]:
    """Return a function that takes a step of a network like the one to be trained."""
    # the initial weights of training come from torch's generator, which must not notice
    with torch.random.fork_rng():
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

    return step


def fastest_seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of the fastest of some calls: other programs slow the rest."""
    begun = time.perf_counter()
    seconds: list[float] = []
    for _ in range(TIMED):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        if time.perf_counter() - begun > ENOUGH:
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
