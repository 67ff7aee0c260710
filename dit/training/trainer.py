"""The training loop."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dit.training.batches import Batch, Batches, BatchLost, draw_loss_inputs
from dit.training.checkpointing import Saver, tidy
from dit.training.cost.flops import Meter, meter
from dit.training.events import (
    Events,
    drop_later_snapshots,
    evaluate_ema,
    events_after,
    sample_preview,
    save_snapshots,
)
from dit.training.lr_schedule import learning_rate
from dit.training.monitoring.log import EvalResult, Stopwatch
from dit.training.monitoring.logged_values import log_values
from dit.training.monitoring.progress import Bar
from dit.training.monitoring.reporter import Reporter
from dit.training.resilience.preemption import Stop
from dit.training.resilience.rollback import Diverged, check_skipped_steps, rollback
from dit.training.resilience.watchdog import Watchdog, watchdog
from dit.training.session import TrainingSession
from dit.training.step import train_step

if TYPE_CHECKING:
    from dit.training.monitoring.evaluation import Scores


def take_step(session: TrainingSession, batch: Batch, step: int) -> None:
    """Take optimizer step number `step`, counted from 1, of a session, on this batch."""
    config, state = session.config, session.state
    # A rollback moves the data, not the number of the step or its learning rate.
    position = session.position(step)
    train_step(
        state,
        draw_loss_inputs(session.stream, batch, session.autoencoder, state.time_sampler, position),
        session.networks,
        session.loss_of(step),
        step=step,
        lr=learning_rate(config, step - 1, session.steps),
        grad_accum=config.grad_accum,
        clip=config.clip,
        precision=session.plan.precision,
        ranks=session.ranks,
    )


def train_with_rollback(session: TrainingSession, scores: "Scores | None", stop: Stop) -> int:
    """Train until done; a run that diverges continues from its last good checkpoint, on other data.

    Return the number of steps done.
    """
    saver = Saver(session.run, session.card, session.ranks)
    if session.ranks.main:
        tidy(session.run, session.config)  # a kill may have come before it
    flops_meter = meter(session)
    diverged = None

    while True:
        # A new reporter drops lines and pictures of steps that are done again.
        reporting: AbstractContextManager[Reporter | None] = nullcontext()
        if session.ranks.main:
            reporting = closing(Reporter(session, flops_meter))
        try:
            with reporting as reporter:
                if reporter and diverged:
                    event = {"event": "rollback", "to": session.start, "reason": diverged.reason}
                    reporter.event(diverged.step, event)
                return Loop(session, scores, stop, saver, flops_meter, reporter).run()
        except Diverged as error:
            session = rollback(session, error)
            diverged = error


@dataclass
class Loop:
    """The iterations of training: wait for a batch, take a step, run the events that are due.

    The watchdog covers the wait, the step and checkpoints; speed covers the wait and the step.
    """

    session: TrainingSession
    scores: "Scores | None"
    stop: Stop
    saver: Saver
    flops_meter: Meter
    reporter: Reporter | None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    hang_timer: Watchdog = field(init=False)
    reader: Batches = field(init=False)
    saved: int = field(init=False)  # step of the newest checkpoint

    def __post_init__(self) -> None:
        self.saved = self.session.start
        first = self.session.position(self.session.start + 1)
        end = self.session.position(self.session.steps + 1)
        self.reader = Batches(self.session.stream, range(first, end))

    def run(self) -> int:
        """Train until the last step, or until a signal asks to stop; return the steps done.

        Raises:
            Diverged: the run should roll back to a checkpoint.
            UserError: images or latents could not be read; the steps before are saved.
        """
        session = self.session
        drop_later_snapshots(session)
        step = session.start
        lost = None

        with (
            watchdog(session.ranks, session.config.timeout) as self.hang_timer,
            Bar(session.start, session.steps, session.ranks.main) as bar,
        ):
            try:
                for step, batch in self.batches():
                    events, values = self.compute(step, batch)
                    result = self.run_events(step, events, values)
                    bar.update(step, {**values, **result.scores})
                    if events.last:
                        break
            except BatchLost as error:
                lost = error
                self.save_what_was_learned(step)
            # Wait until the last checkpoint is written.
            with self.hang_timer.at(step, "writing a checkpoint"):
                self.saver.finish()
        if self.reporter:
            self.reporter.finish()
        if lost:
            raise lost.explain(session.run, self.saved) from lost
        return step

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield the number of each step, and its batch."""
        steps = range(self.session.start + 1, self.session.steps + 1)
        return zip(steps, self.stopwatch.waiting(self._watched(steps)), strict=False)

    def _watched(self, steps: range) -> Iterator[Batch]:
        batches = iter(self.reader)
        for step in steps:
            with self.hang_timer.at(step, "waiting for a batch"):
                pending = next(batches)
            # A hang is of the rank that has not read its batch, not of those that wait for it.
            with self.hang_timer.at(step, "computing"):
                batch = pending.result()
            yield batch

    def compute(self, step: int, batch: Batch) -> tuple[Events, dict[str, float]]:
        """Take a step; return what is due after it, and the numbers to log."""
        session = self.session
        with self.hang_timer.at(step, "computing"):
            take_step(session, batch, step)
            events = events_after(step, session.config, session.steps, self.stop.now())
            if events.check_skipped:
                check_skipped_steps(session, step, self.reporter, self.saver)
            values = {}
            if events.log:
                values = log_values(session, step, self.stopwatch, self.flops_meter)
        # An error of the thread that writes ends training here, not at the next checkpoint.
        self.saver.check()
        return events, values

    def run_events(self, step: int, events: Events, values: dict[str, float]) -> EvalResult:
        """Run what is due after a step; return scores of the EMA, if it was evaluated."""
        session = self.session
        with self.stopwatch.paused():
            result = self.evaluate(step, events)
            if self.reporter:
                self.reporter.write(step, values, result)
            if events.preview:
                sample_preview(session, step, self.stop, self.reporter)
            # Before the checkpoint, from which a resumed run would not write them again.
            if events.snapshot:
                save_snapshots(session, step)
            if events.checkpoint or result.is_best:
                self.save(step, result, events.last)
        return result

    def save(self, step: int, result: EvalResult, last: bool) -> None:
        """Begin a checkpoint of this step."""
        session = self.session
        with self.hang_timer.at(step, "writing a checkpoint"):
            self.saver.save(step, session.state, session.ranks, result.distance, last)
        self.saved = step

    def save_what_was_learned(self, step: int) -> None:
        """Write a checkpoint of the last step, unless there is one."""
        if step > self.saved:
            check_skipped_steps(self.session, step, self.reporter, self.saver)
            self.save(step, EvalResult(), last=True)

    def evaluate(self, step: int, events: Events) -> EvalResult:
        """Return scores of the EMA where they are due; a signal ends them and the run."""
        if not (events.evaluate and self.scores):
            return EvalResult()
        self.reader.wait_until_read()
        result = evaluate_ema(self.session, self.scores, step, self.stop, self.reporter)
        # All ranks saw the signal: they end now, without waiting for the next vote.
        if result is None:
            events.checkpoint = True
            events.last = True
            return EvalResult()
        return result
