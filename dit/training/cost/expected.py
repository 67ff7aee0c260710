"""What a training is expected to take, and the quality of its first stage, before its first step.

And questions about settings that make little sense; none is refused.
"""

import shutil

import numpy as np
import torch

from dit.config import TrainConfig
from dit.data.counts import count_of
from dit.data.first_look import question_sizes
from dit.distributed.ranks import Ranks
from dit.encoders.psnr import describe_psnr, is_enough, measure_psnr
from dit.latents.first_stage import TINY
from dit.latents.on_the_fly import OnlineLatents
from dit.models.registry import count_parameters
from dit.runs.checkpoint_files import checkpoint_step
from dit.training.cost.assumed import AssumedAutoencoder
from dit.training.cost.describe_data import autoencoder_command, question_classes
from dit.training.cost.measured_time import Pace, expected_pace
from dit.training.inputs import RunInputs
from dit.training.length import count_previews
from dit.training.session import TrainingPlan

RESTORED = 32  # images that are encoded and decoded, to measure the first stage
FEW, LARGE_CODEC = 4, 10_000_000  # images on a CPU, with an autoencoder of so many parameters
MANY_EPOCHS = 5_000
SMALL_SHIFT = 0.5  # of times, below which training sees little noise: docs/speedrun.md
FEW_STEPS = 200  # after which samples are still noise
UNITS = (("days", 86_400), ("hours", 3_600), ("minutes", 60))


def restored_psnr(inputs: RunInputs) -> float | None:
    """Return the PSNR of the first stage on some of the images; None where they are not at hand."""
    source, autoencoder = inputs.source, inputs.autoencoder
    network = getattr(autoencoder.codec, "network", None)
    known = isinstance(source, OnlineLatents) and not isinstance(autoencoder, AssumedAutoencoder)
    if not known or network is None:
        return None

    assert isinstance(source, OnlineLatents)
    slow = autoencoder.device.type == "cpu" and count_parameters(network) > LARGE_CODEC
    count = min(FEW if slow else RESTORED, len(source.labels))
    chosen = np.linspace(0, len(source.labels) - 1, count).astype(np.int64)
    images = [source.images[int(index)] for index in source.positions(chosen)]
    return measure_psnr(autoencoder, torch.stack(images))


def describe_time(inputs: RunInputs, plan: TrainingPlan, ranks: Ranks) -> str:
    """Return how long the run and its first grid of samples take on this machine, in words."""
    card, config = inputs.card, inputs.card.config
    pace = inputs.pace or expected_pace(
        card.network, config, inputs.source, inputs.text_tokens, ranks, inputs.alignment
    )
    done = checkpoint_step(plan.checkpoint) if plan.checkpoint else 0
    training = seconds_between(done, plan.steps, pace, card.align_steps)
    mean = training / max(1, plan.steps - done)
    each = f"{mean:.2g} s" if mean < 100 else duration(mean)
    grids = count_previews(config, done, plan.steps)
    seconds = pace.once + training + grids * pace.grid
    source = "measured" if pace.timed else "expected"
    words = f"about {duration(seconds)}, {each} a step {source}"
    if not grids or done:
        return words
    first = min(config.sample_first or plan.steps, config.sample_every or plan.steps, plan.steps)
    until = pace.once + seconds_between(0, first, pace, card.align_steps) + pace.grid
    return f"{words}; first grid after {duration(until)} (step {first:,})"


def seconds_between(done: int, steps: int, pace: Pace, align_steps: int | None) -> float:
    """Return the seconds of the steps after those done; the first `align_steps` take longer."""
    aligned = max(0, min(steps, align_steps or 0) - done)
    return (steps - done) * pace.step + aligned * pace.align


def duration(seconds: float) -> str:
    """Return a time in its largest unit, as "1.5 hours"."""
    for name, length in UNITS:
        value = seconds / length
        if value >= 1.5:
            number = f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
            return f"{number} {name}"
    return count_of(max(1, round(seconds)), "second")


def describe_disk(inputs: RunInputs, plan: TrainingPlan) -> str:
    """Return what the checkpoints of a run take, and what is free, in words."""
    config = inputs.card.config
    weights = 4 * count_parameters(inputs.meta_network)
    # weights, two moments, and the averages
    each = weights * (4 + len(config.ema_lengths))
    kept = config.keep + bool(config.eval_every)
    exists = next(path for path in (plan.run, *plan.run.absolute().parents) if path.exists())
    free = shutil.disk_usage(exists).free
    checkpoints = f"{each * kept / 1e9:.2g} GB for {count_of(kept, 'checkpoint')}"
    return f"{checkpoints} in {plan.run}, {free / 1e9:,.3g} GB free"


def questions(inputs: RunInputs, steps: int, psnr: float | None) -> list[str]:
    """Return what is probably not meant: it is printed, not refused."""
    config, source = inputs.card.config, inputs.source
    asked = _question_length(config, len(source.labels), steps)
    asked += question_classes(inputs.card)
    if isinstance(source, OnlineLatents):
        asked += question_sizes(source.images, config.image_size, source.left_out)
    if inputs.pace and steps < FEW_STEPS:
        asked.append(
            f"{count_of(steps, 'step')} in the time given: samples will be noise; pass more "
            "--minutes or --steps, and start again if another program kept this machine busy"
        )
    assert config.time_shift != "auto", "a card has a number"
    if config.time_shift < SMALL_SHIFT:
        asked.append(
            f"times shifted by {config.time_shift:.3g}: training sees little noise, which made "
            "samples far worse on 4 x 8 x 8 latents; pass --time-shift 1"
        )
    if psnr is not None and not is_enough(psnr):
        other = f"pass one of {autoencoder_command(config)}"
        if config.vae != TINY:
            other = f"pass --vae {TINY}, or one of `dit train-vae`"
        asked.append(
            f"--vae {config.vae} restores these images with {describe_psnr(psnr)}; {other}"
        )
    return asked


def _question_length(config: TrainConfig, images: int, steps: int) -> list[str]:
    epochs = steps * config.global_batch_size / images
    asked = []
    if config.global_batch_size > images:
        asked.append(
            f"--batch-size {config.global_batch_size} of {count_of(images, 'image')}: each is in a "
            "batch more than once; pass a smaller one"
        )
    if epochs > MANY_EPOCHS:
        asked.append(
            f"{epochs:,.0f} epochs: the network will repeat these {images:,} images; pass fewer "
            "--steps, or add images"
        )
    return asked
