"""How long a run is: its steps, the intervals between grids and checkpoints, and the warm-up.

They are decided once, before the first step, and are settings of the run from then on.
"""

import math
from dataclasses import replace

from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.latents.store import Latents
from dit.runs.card import NetworkSpec
from dit.training.cost.measured_time import Pace, measure_pace
from dit.training.lr_schedule import total_steps, warmup_steps

FOR_TRAINING = 0.95  # share of --minutes for steps and grids, beside checkpoints and the start
FOR_PREVIEWS = 0.1  # share of that for grids, but two come in any case: soon, and at the end
FIRST_PREVIEW = 90.0  # seconds until it at most, of a run whose speed is known
MINUTES_ARE_SET = "--minutes is set when a run starts; to train longer pass more --steps"
PREVIEWS, MOST_PREVIEWS, CHECKPOINTS = 10, 100, 4  # of a run, unless intervals are given
AT_RISK = 5_000  # steps between checkpoints at most: what a kill loses


def with_length(
    config: TrainConfig,
    source: Latents,
    spec: NetworkSpec,
    before: TrainConfig | None,
    ranks: Ranks,
    text_tokens: int = 0,
    alignment: float = 0.0,
) -> tuple[TrainConfig, Pace | None]:
    """Return the settings with steps, intervals and warm-up, and the speed where it was measured.

    Args:
        before: Settings of the run that this one continues, whose length stays.
        alignment: FLOPs of --align for one image, while it lasts.
    """
    if before:
        if config.minutes is not None:
            ranks.say([MINUTES_ARE_SET])
        return _as_before(config, before, len(source.labels)), None

    pace = None
    if config.minutes is not None:
        ranks.say([f"timing a few steps, to know how many fit {config.minutes:g} minutes"], "start")
        pace = measure_pace(spec, config, source, text_tokens, ranks, alignment)
        config = _within_minutes(config, config.minutes, pace)

    steps = total_steps(config, len(source.labels))
    previews, checkpoints = config.sample_every, config.ckpt_every
    usual_previews, usual_checkpoints = usual_intervals(steps)
    if previews is None:
        previews = usual_previews
    if checkpoints is None:
        checkpoints = usual_checkpoints
    warmup = warmup_steps(config, steps)
    config = replace(config, sample_every=previews, ckpt_every=checkpoints, warmup=warmup)
    return config, pace


def usual_intervals(steps: int) -> tuple[int, int]:
    """Return the steps between grids, and between checkpoints, of a run of so many."""
    return max(1, steps // PREVIEWS), max(1, min(steps // CHECKPOINTS, AT_RISK))


def _within_minutes(config: TrainConfig, minutes: float, pace: Pace) -> TrainConfig:
    """Return the settings with the steps of so many minutes, and the first grid soon."""
    seconds = 60 * FOR_TRAINING * minutes
    config = replace(config, minutes=None, epochs=None)
    begins = pace.step + pace.align
    pace = replace(pace, step=pace.step + config.align_until * pace.align)
    if config.sample_every is not None:
        # each grid comes with the steps before it
        each = pace.grid / config.sample_every if config.sample_every else 0.0
        steps = replace(pace, step=pace.step + each).steps_in(seconds)
        return replace(config, steps=round_down(max(1, steps)))

    count, first = _previews_in(seconds, pace, begins)
    steps = round_down(max(1, pace.steps_in(seconds, count + (first is not None))))
    every = math.ceil(steps / count) if count else 0
    if first is not None and first >= every:
        first = None
    return replace(config, steps=steps, sample_every=every, sample_first=first)


def _previews_in(seconds: float, pace: Pace, begins: float) -> tuple[int, int | None]:
    """Return how many grids come at equal intervals, and the step of one before them, if any.

    Args:
        begins: Seconds of a step in the beginning.
    """
    if pace.grid > seconds / 2:
        return 0, None  # the time is for training, and the run can be sampled later
    count = min(max(math.ceil(seconds / FIRST_PREVIEW), PREVIEWS), MOST_PREVIEWS)
    if count * pace.grid > FOR_PREVIEWS * seconds:
        count = max(1, int(FOR_PREVIEWS * seconds / pace.grid))
    waits = seconds / count - pace.grid > FIRST_PREVIEW
    fits = (count + 1) * pace.grid <= seconds / 2
    return count, max(1, int(FIRST_PREVIEW / begins)) if waits and fits else None


def count_previews(config: TrainConfig, done: int, steps: int) -> int:
    """Return how many grids follow the steps done."""
    every, first = config.sample_every, config.sample_first
    at = set()
    if every:
        at = {steps, *range(every, steps + 1, every)}
    if first is not None:
        at.add(first)
    return sum(done < step <= steps for step in at)


def _as_before(config: TrainConfig, before: TrainConfig, images: int) -> TrainConfig:
    """Return settings of a run that continues, with its own in place of those left open.

    Intervals that followed from its length follow from the new one: a run of 40 steps that goes on
    to 40,000 would draw a grid every 4 steps.
    """
    if config.minutes is not None:
        config = replace(config, minutes=None, steps=before.steps, epochs=before.epochs)
    # earlier versions had another default of the warm-up, which holds for their runs
    warmup = before.warmup if config.warmup is None else config.warmup
    previews, checkpoints = config.sample_every, config.ckpt_every
    earlier = usual_intervals(total_steps(before, images))
    usual_previews, usual_checkpoints = usual_intervals(total_steps(config, images))
    if previews is None:
        follows = before.sample_every == earlier[0]
        previews = usual_previews if follows else before.sample_every
    if checkpoints is None:
        follows = before.ckpt_every == earlier[1]
        checkpoints = usual_checkpoints if follows else before.ckpt_every
    first = before.sample_first if config.sample_first is None else config.sample_first
    config = replace(config, warmup=warmup, sample_every=previews, ckpt_every=checkpoints)
    return replace(config, sample_first=first)


def round_down(steps: int) -> int:
    """Return a number of two digits and zeros, to be read and typed again."""
    unit = 10 ** max(0, len(str(steps)) - 2)
    return steps // unit * unit
