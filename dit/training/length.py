"""How long a run is: its steps, the intervals between grids and checkpoints, and the warm-up.

They are decided once, before the first step, and are settings of the run from then on.
"""

from collections.abc import Callable
from dataclasses import replace

from dit.config import TrainConfig
from dit.training.cost.measured_time import Pace
from dit.training.lr_schedule import total_steps, warmup_steps

FOR_STEPS = 0.9  # share of --minutes; grids, checkpoints and the start take the rest
FIRST_PREVIEW = 90.0  # seconds until it at most, of a run whose speed is known
PREVIEWS, MOST_PREVIEWS, CHECKPOINTS = 10, 100, 4  # of a run, unless intervals are given


def with_length(
    config: TrainConfig, images: int, before: TrainConfig | None, measure: Callable[[], Pace]
) -> TrainConfig:
    """Return the settings with steps, intervals and warm-up.

    Args:
        before: Settings of the run that this one continues, whose length stays.
        measure: Times steps on this machine, for --minutes.
    """
    if before:
        return _as_before(config, images, before)

    preview = config.sample_every
    if config.minutes is not None:
        pace = measure()
        steps = round_down(max(1, pace.steps_in(60 * FOR_STEPS * config.minutes)))
        soon = int(FIRST_PREVIEW / pace.step)
        config = replace(config, minutes=None, epochs=None, steps=steps)
        if preview is None:
            preview = max(min(steps // PREVIEWS, soon), steps // MOST_PREVIEWS, 1)

    steps = total_steps(config, images)
    checkpoint = config.ckpt_every
    if preview is None:
        preview = max(1, steps // PREVIEWS)
    if checkpoint is None:
        checkpoint = max(1, steps // CHECKPOINTS)
    warmup = warmup_steps(config, steps)
    return replace(config, sample_every=preview, ckpt_every=checkpoint, warmup=warmup)


def _as_before(config: TrainConfig, images: int, before: TrainConfig) -> TrainConfig:
    """Return settings of a run that continues, with its own in place of those left open."""
    if config.minutes is not None:
        config = replace(config, minutes=None, steps=before.steps, epochs=before.epochs)
    # earlier versions had another default of the warm-up, which holds for their runs
    warmup = before.warmup if config.warmup is None else config.warmup
    previews = before.sample_every if config.sample_every is None else config.sample_every
    checkpoints = before.ckpt_every if config.ckpt_every is None else config.ckpt_every
    return replace(config, warmup=warmup, sample_every=previews, ckpt_every=checkpoints)


def round_down(steps: int) -> int:
    """Return a number of two digits and zeros, to be read and typed again."""
    unit = 10 ** max(0, len(str(steps)) - 2)
    return steps // unit * unit
