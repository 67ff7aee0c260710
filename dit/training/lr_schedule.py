"""The learning rate as a function of the step."""

import math

from dit.config import TrainConfig


def total_steps(config: TrainConfig, images: int) -> int:
    """Return the optimizer steps of a run on so many images."""
    if config.epochs is None:
        return config.steps
    return math.ceil(config.epochs * images / config.global_batch_size)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the rate of step `step` (from 0) of `steps`: warm-up, constant, cool-down to zero."""
    # Neither the first step nor the last has a rate of 0, which would waste it.
    rise = (step + 1) / (config.warmup + 1)
    fall = 1.0
    if config.cooldown:
        fall = (steps - step) / (config.cooldown * steps + 1)
    return config.lr * min(1.0, rise, fall)
