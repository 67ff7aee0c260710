"""What happens between optimizer steps: which events are due, and each of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dit.config import TrainConfig
from dit.training.cost.flops import Meter
from dit.training.ema import save_ema_snapshots, snapshot_every
from dit.training.lr_schedule import learning_rate
from dit.training.monitoring.environment import peak_memory
from dit.training.monitoring.metrics import EvalResult, Stopwatch
from dit.training.monitoring.reporter import Reporter
from dit.training.monitoring.update_ratio import update_ratio
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
        preview=is_due(step, config.sample_every, steps),
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


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether an event of every so many steps (0: never), and of the last, follows this step."""
    return every > 0 and (step % every == 0 or step == steps)


def log_values(
    session: TrainingSession, step: int, watch: Stopwatch, meter: Meter
) -> dict[str, float]:
    """Return the numbers of the log: means since its last line; update and memory as of now."""
    # This waits for the device, so that the stopwatch counts all of its work.
    means = session.state.means.compute_and_reset(session.ranks)
    lap = watch.lap(step - session.start)
    speed = session.config.global_batch_size * lap.steps_per_second

    # Each rank measures its own wait and memory: logged are their mean and their maximum.
    device = session.ranks.device
    mine = torch.tensor([[lap.waiting, peak_memory(device)]], dtype=torch.float64, device=device)
    waiting, memory = session.ranks.gather(mine).T
    return {
        **means,
        "lr": learning_rate(session.config, step - 1, session.steps),
        "update_ratio": update_ratio(session.state.optimizer).item(),
        "img_per_s": speed,
        "mfu": meter.utilisation(speed),
        "data_wait": waiting.mean().item(),
        "memory_gib": memory.max().item(),
    }


def evaluate_ema(
    session: TrainingSession, scores: "Scores", step: int, stop: Stop, reporter: Reporter | None
) -> EvalResult | None:
    """Return scores of the EMA; None where a signal interrupted it, on all ranks alike."""
    try:
        return scores.measure(step, session.average(), stop.on_batch)
    except Preempted:
        if reporter:
            reporter.event(step, {"event": "unscored", "reason": "a signal asked to stop"})
        return None


def sample_preview(
    session: TrainingSession, step: int, stop: Stop, reporter: Reporter | None
) -> None:
    """Sample a grid from the EMA; all ranks call it, rank 0 samples."""
    # All ranks: with FSDP2 it takes them all to gather the weights.
    average = session.average()
    if reporter:
        with stop.interrupting(average):
            reporter.draw(step, average)


def save_snapshots(session: TrainingSession, step: int) -> None:
    """Write the power EMAs into RUN/ema; all ranks call it."""
    averages = session.state.power_emas
    save_ema_snapshots(session.run, step, averages, session.card, session.ranks)
