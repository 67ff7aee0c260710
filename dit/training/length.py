"""How long a run is: its steps, the intervals between grids and checkpoints, and the warm-up.

They are decided once, before the first step, and are settings of the run from then on.
"""

from dataclasses import replace

from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.text import TextEncoder
from dit.latents.store import Latents
from dit.training.build_card import describe_network
from dit.training.cost.measured_time import Pace, measure_pace
from dit.training.lr_schedule import total_steps, warmup_steps

FOR_STEPS = 0.9  # share of --minutes; grids, checkpoints and the start take the rest
FIRST_PREVIEW = 90.0  # seconds until it at most, of a run whose speed is known
PREVIEWS, MOST_PREVIEWS, CHECKPOINTS = 10, 100, 4  # of a run, unless intervals are given
AT_RISK = 5_000  # steps between checkpoints at most: what a kill loses


def with_length(
    config: TrainConfig,
    source: Latents,
    encoder: TextEncoder | None,
    before: TrainConfig | None,
    ranks: Ranks,
) -> tuple[TrainConfig, Pace | None]:
    """Return the settings with steps, intervals and warm-up, and the speed where it was measured.

    Args:
        before: Settings of the run that this one continues, whose length stays.
    """
    if before:
        return _as_before(config, before), None

    pace = None
    if config.minutes is not None:
        spec = describe_network(config, source, encoder)
        tokens = encoder.length if encoder else 0
        pace = measure_pace(spec, config, source, tokens, ranks)
        config = _within_minutes(config, config.minutes, pace)

    steps = total_steps(config, len(source.labels))
    previews, checkpoints = config.sample_every, config.ckpt_every
    if previews is None:
        previews = max(1, steps // PREVIEWS)
    if checkpoints is None:
        checkpoints = max(1, min(steps // CHECKPOINTS, AT_RISK))
    warmup = warmup_steps(config, steps)
    config = replace(config, sample_every=previews, ckpt_every=checkpoints, warmup=warmup)
    return config, pace


def _within_minutes(config: TrainConfig, minutes: float, pace: Pace) -> TrainConfig:
    """Return the settings with the steps of so many minutes, and the first grid soon."""
    steps = round_down(max(1, pace.steps_in(60 * FOR_STEPS * minutes)))
    previews = config.sample_every
    if previews is None:
        soon = min(steps // PREVIEWS, int(FIRST_PREVIEW / pace.step))
        previews = max(1, soon, steps // MOST_PREVIEWS)
    return replace(config, minutes=None, epochs=None, steps=steps, sample_every=previews)


def _as_before(config: TrainConfig, before: TrainConfig) -> TrainConfig:
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
