"""The learning rate as a function of the step."""

import math

from dit.config import TrainConfig


def total_steps(config: TrainConfig, size: int) -> int:
    """Optimizer steps of a run on `size` images."""
    if config.epochs is None:
        return config.steps
    return math.ceil(config.epochs * size / config.global_batch_size)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of step `step` (from 0) of `steps`: linear warm-up, constant, linear cool-down to zero."""
    rise = (step + 1) / (config.warmup + 1)
    fall = (steps - step) / (config.cooldown * steps + 1) if config.cooldown else 1.0
    return config.lr * min(1.0, rise, fall)
