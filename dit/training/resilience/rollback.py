"""What becomes of a run whose steps are left out: it stops, goes on, or goes back (--on-divergence)."""

import dataclasses
from typing import TYPE_CHECKING

from dit.errors import UserError
from dit.runs.checkpoints import latest_checkpoint
from dit.training import checkpointing as checkpoint
from dit.training.checkpointing import Saver
from dit.training.session import TrainingSession
from dit.training.spike_guard import SkippedStep

if TYPE_CHECKING:
    from dit.training.monitoring.reporter import Reporter

RETURNS = 3  # to one checkpoint, with other data each time; then something else is wrong


class Diverged(Exception):
    """The run should go back: too many steps in a row were left out, until this one."""

    def __init__(self, step: int, why: str):
        super().__init__(step, why)
        self.step, self.why = step, why


def check_skipped_steps(
    session: TrainingSession, step: int, reporter: "Reporter | None", saver: Saver
) -> None:
    """Log the steps that were left out since the last look, and do what --on-divergence says; alike on all ranks.

    Raises:
        UserError: with `stop`, at the first; with `skip`, once --max-skips in a row were left out.
        Diverged: with `rollback`, then.
    """
    found, config = session.state.guard.left_out(), session.config
    if not found:
        return
    saver.finish()  # so that the newest checkpoint is one
    if config.on_divergence == "stop":
        raise hopeless(session, f"{reason(found[0])} at step {found[0].step}")
    if reporter:
        for one in found:
            reporter.event(one.step, {"event": "skipped", "reason": reason(one)})
    if session.state.guard.streak < config.max_skips:
        return
    why = f"{int(session.state.guard.streak)} steps in a row were left out until step {step}: {reason(found[-1])}"
    if config.on_divergence == "skip":
        raise hopeless(session, why)
    raise Diverged(step, why)


def rollback(session: TrainingSession, divergence: Diverged) -> TrainingSession:
    """The run as its last good checkpoint left it; the batches since then are passed over.

    Raises:
        UserError: there is no checkpoint yet, or the run came back to this one too often.
    """
    good, reached = (
        session.ranks.share(latest_checkpoint(session.run)),
        divergence.step + int(session.state.guard.offset),
    )
    if good is None:
        raise hopeless(session, divergence.why)
    start = checkpoint.load(good, session.state, session.ranks)
    returns = session.returns + 1 if start == session.start else 1
    if returns > RETURNS:
        raise hopeless(
            session,
            f"{divergence.why}; so it went {returns} times from {good}, with other data each time",
        )
    session.state.guard.offset.fill_(reached - start)
    return dataclasses.replace(session, start=start, returns=returns)


def reason(one: SkippedStep) -> str:
    """Why a step was left out."""
    if not one.finite:
        return "loss or gradient is not finite"
    return f"loss {one.loss:.4g} or gradient norm {one.grad_norm:.4g} leaps"


def hopeless(session: TrainingSession, given: str) -> UserError:
    """That training can't go on like this, with the checkpoint that is left."""
    good = latest_checkpoint(session.run)
    kept = f"{good} is the last good checkpoint" if good else "no checkpoint was written yet"
    return UserError(
        given,
        "finite numbers that change by and by",
        f"lower --lr, or pass --precision fp32; {kept}",
    )
