"""What follows skipped steps (--on-divergence): the run stops, continues, or rolls back."""

import dataclasses
import math
from typing import TYPE_CHECKING

from dit.errors import UserError
from dit.runs.checkpoint_files import latest_checkpoint
from dit.training.checkpointing import Saver, load
from dit.training.session import TrainingSession
from dit.training.spike_guard import SkippedStep

if TYPE_CHECKING:
    from dit.training.monitoring.reporter import Reporter

MAX_ROLLBACKS = 3  # to one checkpoint, with other data each time


class Diverged(Exception):
    """The run should roll back: too many steps in a row were skipped, until this one."""

    def __init__(self, step: int, reason: str):
        super().__init__(step, reason)
        self.step = step
        self.reason = reason


def check_skipped_steps(
    session: TrainingSession, step: int, reporter: "Reporter | None", saver: Saver
) -> None:
    """Log the steps skipped since the last check, and do what --on-divergence says, on all ranks.

    Raises:
        UserError: with `stop`, at the first; with `skip`, after --max-skips in a row.
        Diverged: with `rollback`, after as many.
    """
    guard, config = session.state.guard, session.config
    skipped = guard.take_skipped()
    if not skipped:
        return
    saver.finish()  # a checkpoint under way counts as the newest
    if config.on_divergence == "stop":
        raise divergence_error(session, f"{describe(skipped[0])} at step {skipped[0].step}")

    if reporter:
        for one in skipped:
            reporter.event(one.step, {"event": "skipped", "reason": describe(one)})
    if guard.streak < config.max_skips:
        return
    count = int(guard.streak)
    reason = f"{count} steps in a row were skipped until step {step}: {describe(skipped[-1])}"
    if config.on_divergence == "skip":
        raise divergence_error(session, reason)
    raise Diverged(step, reason)


def rollback(session: TrainingSession, divergence: Diverged) -> TrainingSession:
    """Return the session at its last good checkpoint; the data since then is passed over.

    Raises:
        UserError: there is no checkpoint, or the run rolled back to this one too often.
    """
    checkpoint = session.ranks.broadcast(latest_checkpoint(session.run))
    next_position = session.position(divergence.step + 1)
    if checkpoint is None:
        raise divergence_error(session, divergence.reason)

    # The next position continues after all data so far, on which the run diverged.
    start = load(checkpoint, session.state, session.ranks)
    rollbacks = session.rollbacks + 1 if start == session.start else 1
    if rollbacks > MAX_ROLLBACKS:
        tries = f"{rollbacks} times from {checkpoint}, with other data each time"
        raise divergence_error(session, f"{divergence.reason}; it diverged {tries}")
    session.state.guard.offset.fill_(next_position - start)
    return dataclasses.replace(session, start=start, rollbacks=rollbacks)


def describe(skipped: SkippedStep) -> str:
    """Return why a step was skipped."""
    if not (math.isfinite(skipped.loss) and math.isfinite(skipped.grad_norm)):
        return "loss or gradient is not finite"
    return f"loss {skipped.loss:.4g} or gradient norm {skipped.grad_norm:.4g} spikes"


def divergence_error(session: TrainingSession, given: str) -> UserError:
    """Return the error that ends a run which diverges, with the checkpoint that remains."""
    good = latest_checkpoint(session.run)
    kept = f"{good} is the last good checkpoint" if good else "no checkpoint was written yet"
    # a compiler's mistakes are rare, and look like this
    eager = " or --no-compile" if session.plan.compiled else ""
    return UserError(
        given,
        "finite numbers without sudden jumps",
        f"lower --lr, or pass --precision fp32{eager}; {kept}",
    )
