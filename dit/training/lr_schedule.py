"""The learning rate as a function of the step."""

import math

from dit.config import TrainConfig


def total_steps(config: TrainConfig, images: int) -> int:
    """Return the optimizer steps of a run on so many images."""
    if config.epochs is None:
        return config.steps
    return math.ceil(config.epochs * images / config.global_batch_size)


def warmup_steps(config: TrainConfig, steps: int) -> int:
    """Return the steps of warm-up: --warmup, else a number that ends before the cool-down."""
    if config.warmup is not None:
        return config.warmup
    usual = max(50, min(1000, steps // 100))
    before_cooldown = int(steps - config.cooldown * steps)
    return min(usual, steps // 10, before_cooldown)


def note_warmup(config: TrainConfig, steps: int) -> list[str]:
    """Say so if --warmup lasts into the cool-down, or longer than the run."""
    warmup = warmup_steps(config, steps)
    cooldown = round(config.cooldown * steps)
    end, what = steps - cooldown, "cool-down begins" if cooldown else "run ends"
    if warmup <= end:
        return []
    return [
        f"--warmup {warmup} lasts longer than the {end} steps until the {what}: the learning rate "
        f"reaches {_peak(config, steps):.2g}, not {config.lr:g}; pass a smaller one, or drop it"
    ]


def _peak(config: TrainConfig, steps: int) -> float:
    """Return the highest rate of a warm-up that lasts into the cool-down, or to the end."""
    step = steps - 1
    if config.cooldown:
        # where the line that rises meets the one that falls
        rise, fall = warmup_steps(config, steps) + 1, config.cooldown * steps + 1
        step = int((steps * rise - fall) / (rise + fall))
    return max(learning_rate(config, s, steps) for s in (step, min(step + 1, steps - 1)))


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the rate of step `step` (from 0) of `steps`: warm-up, constant, cool-down to zero."""
    # Neither the first step nor the last has a rate of 0, which would waste it.
    rise = (step + 1) / (warmup_steps(config, steps) + 1)
    fall = 1.0
    if config.cooldown:
        fall = (steps - step) / (config.cooldown * steps + 1)
    return config.lr * min(1.0, rise, fall)
