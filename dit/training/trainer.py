"""The training loop."""

from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dit.build import build_text_encoder, with_data_statistics
from dit.config import TrainConfig
from dit.distributed.float8 import require_fp8
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.models.registry import check_name, is_classifier
from dit.runs.card import ModelCard
from dit.runs.checkpoints import (
    BEST,
    checkpoint_card,
    checkpoint_step,
    find_best,
    latest_checkpoint,
    read_card,
)
from dit.runs.posthoc_ema import FOLDER, drop_after
from dit.training import checkpointing as checkpoint
from dit.training.batches import Batch, Batches
from dit.training.checkpointing import Saver
from dit.training.cost.dry_run import dry_run
from dit.training.cost.flops import Meter, meter
from dit.training.ema import save_snapshots, snapshot_every
from dit.training.lr_schedule import learning_rate
from dit.training.monitoring.environment import peak_memory
from dit.training.monitoring.metrics import EvalResult, Stopwatch
from dit.training.monitoring.progress import Bar
from dit.training.monitoring.reporter import Reporter
from dit.training.monitoring.trackers import require_wandb
from dit.training.monitoring.update_ratio import update_ratio
from dit.training.prepare import build_card, prepare
from dit.training.resilience.preemption import Left, Stop, stop_on_signals
from dit.training.resilience.rollback import Diverged, check_skipped_steps, rollback
from dit.training.resilience.watchdog import Watchdog, watchdog
from dit.training.run_directory import (
    begin,
    changes,
    find_run,
    require_autoencoder,
    restarted,
    write_card,
)
from dit.training.session import TrainingSession
from dit.training.spike_guard import LOOK
from dit.training.step import train_step
from dit.utils.files import shell_quote

if TYPE_CHECKING:
    from dit.training.monitoring.evaluation import EvalTarget, Scores


def train(asked: TrainConfig, ranks: Ranks, parent_card: ModelCard | None = None) -> Path | None:
    """Train, or continue, a run; its directory (None after a dry run).

    Args:
        parent_card: of a run whose latent statistics it shares; its own where it goes on, else measured.

    Raises:
        UserError: settings, data or files that do not fit; numbers that are not finite.
    """
    config = restarted(asked, ranks)
    check_name(config.model, config.conditioning)  # what is wrong is told before anything is loaded
    share = ranks.world * config.grad_accum
    if config.global_batch_size % share:
        count = f"{ranks.world} rank{'s' if ranks.world > 1 else ''}"
        raise UserError(
            f"--global-batch-size {config.global_batch_size} on {count} with --grad-accum "
            f"{config.grad_accum}",
            f"a multiple of {share}",
            "change one of them",
        )
    _, last = find_run(config, ranks)
    require_wandb(config.wandb)
    require_fp8(config.precision, ranks.device)
    if config.dry_run:
        tables = dry_run(config, ranks, parent_card)
        if ranks.main:
            print(tables)
        return None
    autoencoder = load_autoencoder(config.vae, ranks.device)
    source = build_source(config, autoencoder, ranks)
    encoder = build_text_encoder(config, ranks.device)
    before = read_card(last.parents[1]) if last else None
    card = replace(
        build_card(config, source, encoder, before or parent_card), vae_sha256=autoencoder.checksum
    )
    if parent_card:
        require_autoencoder(card, parent_card, "the run to be guided", "put that one back")
    yardstick = choose_eval_target(config, ranks)
    session = prepare(card, source, with_data_statistics(autoencoder, card), ranks, encoder)
    scores = yardstick.prepare(session) if yardstick else None
    with ranks.alone_in(session.run), stop_on_signals(ranks) as stop:
        if ranks.main:
            if not session.finished:
                print_header(session)
            write_card(session.run, card, session.finished)
        begin(session.run, asked, ranks)
        done = train_with_rollback(session, scores, stop)
    if ranks.main:
        print_summary(session, done)
    return session.run


def choose_eval_target(config: TrainConfig, ranks: Ranks) -> "EvalTarget | None":
    """What --eval-every compares with; its code is imported only where it is on."""
    if not config.eval_every:
        return None
    from dit.training.monitoring import evaluation as scores

    return scores.choose_eval_target(config, ranks)


def train_with_rollback(session: TrainingSession, scores: "Scores | None", stop: Stop) -> int:
    """All steps from the start, with their logs, pictures, scores and checkpoints; the number of steps done.

    Where a run diverged, it goes back to its last good checkpoint, and on from there with other data.
    """
    saver = Saver(session.run, session.card, session.ranks)
    if session.ranks.main:
        checkpoint.tidy(session.run, session.config)  # a kill may have come before it
    diverged, measure = None, meter(session)
    while True:
        try:
            with (
                closing(Reporter(session, measure))
                if session.ranks.main
                else nullcontext() as reporter
            ):
                if reporter and diverged:
                    reporter.event(
                        diverged.step,
                        {"event": "rollback", "to": session.start, "reason": diverged.why},
                    )
                return train_until_done(session, scores, stop, saver, measure, reporter)
        except Diverged as found:
            session, diverged = rollback(session, found), found


def train_until_done(
    session: TrainingSession,
    scores: "Scores | None",
    stop: Stop,
    saver: Saver,
    measure: Meter,
    reporter: Reporter | None,
) -> int:
    """Steps until the last, or until one must stop; how many were done.

    Raises:
        Diverged: the run should go back to a checkpoint.
    """
    config, step, coming, watch = session.config, session.start, Batches(session), Stopwatch()
    if session.ranks.main:
        drop_after(session.run, session.start)
    with (
        watchdog(session.ranks, config.timeout) as dog,
        Bar(session.start, session.steps, session.ranks.main) as bar,
    ):
        for step, batch in enumerate(
            watch.waiting(watched(coming, dog, session.start)), start=session.start + 1
        ):
            with dog.at(step, "computing"):
                train_step(session, batch, step)
                last = stop.now() or step == session.steps
                logs, draws, judges, shoots = (
                    due(step, every, session.steps)
                    for every in (
                        config.log_every,
                        config.sample_every,
                        config.eval_every,
                        snapshot_every(config, session.steps),
                    )
                )
                saves = due(step, config.ckpt_every, session.steps) or last
                if logs or draws or judges or shoots or saves or step % LOOK == 0:
                    check_skipped_steps(session, step, reporter, saver)
                values = averages(session, step, watch, measure) if logs else {}
            saver.check()
            with watch.paused():
                found = EvalResult()
                if scores and judges:
                    coming.settle()
                    found, left = evaluate_ema(session, scores, step, stop)
                    saves, last = saves or left, last or left
                    if left and reporter:
                        reporter.event(
                            step, {"event": "unscored", "reason": "a signal asked to stop"}
                        )
                if reporter:
                    reporter.write(step, values, found)
                if draws:
                    sample_preview(session, step, stop, reporter)
                if shoots:  # before the checkpoint: what was done before it is not done again
                    save_snapshots(
                        session.run, step, session.state.profiles, session.card, session.ranks
                    )
                if saves or found.leads:
                    with dog.at(step, "writing a checkpoint"):
                        saver.save(step, session.state, session.ranks, found.distance)
            bar.update(step, {**values, **found.scores})
            if last:
                break
        with dog.at(step, "writing a checkpoint"):
            saver.finish()
    if reporter:
        reporter.finish()
    return step


def sample_preview(
    session: TrainingSession, step: int, stop: Stop, reporter: Reporter | None
) -> None:
    """A grid from the EMA, which is whole no longer than that takes."""
    average = session.average()
    if reporter:
        with stop.leaving(average):
            reporter.draw(step, average)


def evaluate_ema(
    session: TrainingSession, scores: "Scores", step: int, stop: Stop
) -> tuple[EvalResult, bool]:
    """Scores of the EMA, and whether a signal put an end to them."""
    try:
        return scores.measure(step, session.average(), stop.heed), False
    except Left:
        return EvalResult(), True


def watched(coming: Iterable[Batch], dog: Watchdog, start: int) -> Iterator[Batch]:
    """Batches, with a watchdog at the wait for each."""
    batches = iter(coming)
    for step in count(start + 1):
        with dog.at(step, "waiting for a batch"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps (0 = never), and after the last, happens after this one."""
    return every > 0 and (step % every == 0 or step == steps)


def averages(
    session: TrainingSession, step: int, watch: Stopwatch, measure: Meter
) -> dict[str, float]:
    """What the log says of the steps since its last line; of update and memory, now."""
    values = session.state.window.close(
        session.ranks
    )  # waits for the device, so that the watch sees all of its work
    lap = watch.lap(step - session.start)
    speed = session.config.global_batch_size * lap.steps_per_second
    own = torch.tensor(
        [[lap.waiting, peak_memory(session.ranks.device)]],
        dtype=torch.float64,
        device=session.ranks.device,
    )
    waiting, memory = session.ranks.gather(own).T
    return {
        **values,
        "lr": learning_rate(session.config, step - 1, session.steps),
        "update_ratio": update_ratio(session.state.optimizer).item(),
        "img_per_s": speed,
        "mfu": measure.utilisation(speed),
        "data_wait": waiting.mean().item(),
        "memory_gib": memory.max().item(),
    }


def print_header(session: TrainingSession) -> None:
    """Tell what was decided at the start, where there was anything to decide."""
    if session.ranks.world > 1:
        print(f"parallel    {session.parallel}", flush=True)
    before = checkpoint_card(last) if (last := latest_checkpoint(session.run)) else session.card
    if changed := changes(before, session.card):
        print(f"changed     {'; '.join(changed.values())}", flush=True)


def print_summary(session: TrainingSession, done: int) -> None:
    """Tell where everything is."""
    run = shell_quote(session.run)
    if done < session.steps:
        print(
            f"stopped after step {done} of {session.steps}; continue with: python train.py --resume {run}"
        )
        return
    if session.finished:
        longer = (
            f"--epochs {2 * session.config.epochs:g}"
            if session.config.epochs
            else f"--steps {2 * done}"
        )
        print(
            f"all {done} steps were done before, and {session.run} is as it was; for more, pass more, such as {longer}"
        )
    print(
        f"run         {session.run}\ncheckpoint  {latest_checkpoint(session.run)}\nloss curve  {session.run / 'loss.png'}"
    )
    print(f"page        dit report {run}")
    if is_classifier(session.config.model):
        print(f"accuracy    {session.run / 'accuracy.png'}")
        return
    if session.config.sample_every:
        print(f"samples     {session.run / 'samples'}")
    if session.config.eval_every:
        print(
            f"scores      {session.run / 'scores.png'}; how they were made: {session.run / 'scores.json'}"
        )
    if session.config.ema_lengths:
        print(f"averages    {session.run / FOLDER}; one of any length: dit ema {run} --length 0.07")
    if (best := find_best(session.run)) and (session.run / BEST).exists():
        step, distance = checkpoint_step(best.checkpoint), best.distance
        print(
            f"best        {session.run / BEST} (step {step}, {distance.name} {distance.value:.4g})"
        )
    print(f"next        python sample.py --run {run}")
