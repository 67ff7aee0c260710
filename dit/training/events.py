"""What happens between optimizer steps: which events are due, and each of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit.config import TrainConfig
from dit.runs.posthoc_ema import drop_after
from dit.training.ema import save_ema_snapshots, snapshot_every
from dit.training.monitoring.log import EvalResult
from dit.training.monitoring.reporter import Reporter
from dit.training.resilience.preemption import Preempted, Stop
from dit.training.session import TrainingSession
from dit.training.spike_guard import CHECK_EVERY

if TYPE_CHECKING:
    from dit.training.monitoring.evaluation import Scores


@dataclass
class Events:
    """What is due after one step."""

    log: bool
    preview: bool
    evaluate: bool
    snapshot: bool
    checkpoint: bool
    check_skipped: bool
    last: bool  # no step follows


def events_after(step: int, config: TrainConfig, steps: int, stop: bool) -> Events:
    """Return what is due after step `step` of `steps`.

    Args:
        stop: whether a signal asked to save and end.
    """
    last = stop or step == steps
    events = Events(
        log=is_due(step, config.log_every, steps),
        preview=is_due(step, config.sample_every, steps) or step == config.sample_first,
        evaluate=is_due(step, config.eval_every, steps),
        snapshot=is_due(step, snapshot_every(config, steps), steps),
        checkpoint=is_due(step, config.ckpt_every, steps) or last,
        check_skipped=step % CHECK_EVERY == 0,
        last=last,
    )
    # Before each event, so that a run that should roll back is neither scored nor saved.
    if events.log or events.preview or events.evaluate or events.snapshot or events.checkpoint:
        events.check_skipped = True
    return events


def is_due(step: int, every: int | None, steps: int) -> bool:
    """Whether an event of every so many steps (0: never), and of the last, follows this step."""
    assert every is not None, "a card has a number"
    return every > 0 and (step % every == 0 or step == steps)


def evaluate_ema(
    session: TrainingSession, scores: "Scores", step: int, stop: Stop, reporter: Reporter | None
) -> EvalResult | None:
    """Return scores of the EMA; None where a signal interrupted it, on all ranks alike."""
    try:
        return scores.measure(step, session.ema_for_sampling(), stop.on_batch)
    except Preempted:
        if reporter:
            reporter.event(step, {"event": "unscored", "reason": "a signal asked to stop"})
        return None


def sample_preview(
    session: TrainingSession, step: int, stop: Stop, reporter: Reporter | None
) -> None:
    """Sample a grid from the EMA; all ranks call it, rank 0 samples."""
    # All ranks: with FSDP2 it takes them all to gather the weights.
    average = session.ema_for_sampling()
    if reporter:
        with stop.interrupting(average):
            reporter.draw(step, average)


def drop_later_snapshots(session: TrainingSession) -> None:
    """Remove the snapshots of steps that a killed run did after its last checkpoint."""
    if session.ranks.main:
        drop_after(session.run, session.start)


def save_snapshots(session: TrainingSession, step: int) -> None:
    """Write the power EMAs into RUN/ema; all ranks call it."""
    averages = session.state.power_emas
    save_ema_snapshots(session.run, step, averages, session.card, session.ranks)
