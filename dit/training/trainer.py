"""The training loop."""

from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dit.build import build_text_encoder, normalised
from dit.config import TrainConfig
from dit.distributed.float8 import require_fp8
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.models.registry import check_name, is_classifier
from dit.runs.card import Card
from dit.runs.checkpoints import BEST, card_of, checkpoint_card, checkpoint_step, find_best, latest
from dit.runs.posthoc_ema import FOLDER, drop_after
from dit.training import checkpointing as checkpoint
from dit.training.batches import Batch, Batches
from dit.training.checkpointing import Saver
from dit.training.cost.ddp_or_fsdp import choose
from dit.training.cost.dry_run import describe
from dit.training.cost.flops import Meter, meter
from dit.training.ema import save_snapshots, snapshot_every
from dit.training.finetune import find_origin
from dit.training.lr_schedule import learning_rate
from dit.training.monitoring.environment import peak_memory
from dit.training.monitoring.metrics import Found, Stopwatch
from dit.training.monitoring.progress import Bar
from dit.training.monitoring.reporter import Reporter
from dit.training.monitoring.trackers import require_wandb
from dit.training.monitoring.update_ratio import update_ratio
from dit.training.prepare import build_card, prepare
from dit.training.resilience.preemption import Left, Stop, stop_on_signals
from dit.training.resilience.rollback import Diverged, go_back, look
from dit.training.resilience.watchdog import Watchdog, watchdog
from dit.training.run_directory import begin, changes, find_run, open_run, require_autoencoder, restarted, write_card
from dit.training.session import Job
from dit.training.spike_guard import LOOK
from dit.training.step import train_step
from dit.utils.files import quoted

if TYPE_CHECKING:
    from dit.training.monitoring.evaluation import Scores, Yardstick


def train(asked: TrainConfig, ranks: Ranks, kin: Card | None = None) -> Path | None:
    """Train, or continue, a run; its directory (None after a dry run).

    Args:
        kin: of a run whose latent statistics it shares; its own where it goes on, else measured.

    Raises:
        UserError: settings, data or files that do not fit; numbers that are not finite.
    """
    config = restarted(asked, ranks)
    check_name(config.model, config.conditioning)  # what is wrong is told before anything is loaded
    share = ranks.world * config.grad_accum
    if config.global_batch_size % share:
        count = f"{ranks.world} rank{'s' if ranks.world > 1 else ''}"
        raise UserError(f"--global-batch-size {config.global_batch_size} on {count} with --grad-accum "
                        f"{config.grad_accum}", f"a multiple of {share}", "change one of them")
    _, last = find_run(config, ranks)
    require_wandb(config.wandb)
    require_fp8(config.precision, ranks.device)
    autoencoder = load_autoencoder(config.vae, ranks.device)
    source = build_source(config, autoencoder, ranks)
    encoder = build_text_encoder(config, ranks.device)
    before = card_of(last.parents[1]) if last else None
    card = replace(build_card(config, source, encoder, before or kin), vae_sha256=autoencoder.checksum)
    if kin:
        require_autoencoder(card, kin, "the run to be guided", "put that one back")
    yardstick = choose_yardstick(config, ranks)
    if config.dry_run:
        open_run(card, len(source.labels), ranks)
        if config.init and not last:
            find_origin(card, config.init)
        choice = choose(card, autoencoder, encoder, ranks)
        if ranks.main:
            print(describe(card, source, autoencoder, ranks, choice, encoder))
        return None
    job = prepare(card, source, normalised(autoencoder, card), ranks, encoder)
    scores = yardstick.prepare(job) if yardstick else None
    with ranks.alone_in(job.run), stop_on_signals(ranks) as stop:
        if ranks.main:
            if not job.finished:
                announce(job)
            write_card(job.run, card, job.finished)
        begin(job.run, asked, ranks)
        done = loop(job, scores, stop)
    if ranks.main:
        farewell(job, done)
    return job.run


def choose_yardstick(config: TrainConfig, ranks: Ranks) -> "Yardstick | None":
    """What --eval-every compares with; its code is imported only where it is on."""
    if not config.eval_every:
        return None
    from dit.training.monitoring import evaluation as scores

    return scores.choose_yardstick(config, ranks)


def loop(job: Job, scores: "Scores | None", stop: Stop) -> int:
    """All steps from the start, with their logs, pictures, scores and checkpoints; the number of steps done.

    Where a run diverged, it goes back to its last good checkpoint, and on from there with other data.
    """
    saver = Saver(job.run, job.card, job.ranks)
    if job.ranks.main:
        checkpoint.tidy(job.run, job.config)  # a kill may have come before it
    diverged, measure = None, meter(job)
    while True:
        try:
            with closing(Reporter(job, measure)) if job.ranks.main else nullcontext() as reporter:
                if reporter and diverged:
                    reporter.event(diverged.step, {"event": "rollback", "to": job.start, "reason": diverged.why})
                return stretch(job, scores, stop, saver, measure, reporter)
        except Diverged as found:
            job, diverged = go_back(job, found), found


def stretch(job: Job, scores: "Scores | None", stop: Stop, saver: Saver, measure: Meter, reporter: Reporter | None
            ) -> int:
    """Steps until the last, or until one must stop; how many were done.

    Raises:
        Diverged: the run should go back to a checkpoint.
    """
    config, step, coming, watch = job.config, job.start, Batches(job), Stopwatch()
    if job.ranks.main:
        drop_after(job.run, job.start)
    with watchdog(job.ranks, config.timeout) as dog, Bar(job.start, job.steps, job.ranks.main) as bar:
        for step, batch in enumerate(watch.waiting(watched(coming, dog, job.start)), start=job.start + 1):
            with dog.at(step, "computing"):
                train_step(job, batch, step)
                last = stop.now() or step == job.steps
                logs, draws, judges, shoots = (due(step, every, job.steps) for every in (
                    config.log_every, config.sample_every, config.eval_every, snapshot_every(config, job.steps)))
                saves = due(step, config.ckpt_every, job.steps) or last
                if logs or draws or judges or shoots or saves or step % LOOK == 0:
                    look(job, step, reporter, saver)
                values = averages(job, step, watch, measure) if logs else {}
            saver.check()
            with watch.paused():
                found = Found()
                if scores and judges:
                    coming.settle()
                    found, left = judge(job, scores, step, stop)
                    saves, last = saves or left, last or left
                    if left and reporter:
                        reporter.event(step, {"event": "unscored", "reason": "a signal asked to stop"})
                if reporter:
                    reporter.write(step, values, found)
                if draws:
                    draw(job, step, stop, reporter)
                if shoots:  # before the checkpoint: what was done before it is not done again
                    save_snapshots(job.run, step, job.state.profiles, job.card, job.ranks)
                if saves or found.leads:
                    with dog.at(step, "writing a checkpoint"):
                        saver.save(step, job.state, job.ranks, found.distance)
            bar.update(step, {**values, **found.scores})
            if last:
                break
        with dog.at(step, "writing a checkpoint"):
            saver.finish()
    if reporter:
        reporter.finish()
    return step


def draw(job: Job, step: int, stop: Stop, reporter: Reporter | None) -> None:
    """A grid from the EMA, which is whole no longer than that takes."""
    average = job.average()
    if reporter:
        with stop.leaving(average):
            reporter.draw(step, average)


def judge(job: Job, scores: "Scores", step: int, stop: Stop) -> tuple[Found, bool]:
    """Scores of the EMA, and whether a signal put an end to them."""
    try:
        return scores.measure(step, job.average(), stop.heed), False
    except Left:
        return Found(), True


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


def averages(job: Job, step: int, watch: Stopwatch, measure: Meter) -> dict[str, float]:
    """What the log says of the steps since its last line; of update and memory, now."""
    values = job.state.window.close(job.ranks)  # waits for the device, so that the watch sees all of its work
    lap = watch.lap(step - job.start)
    speed = job.config.global_batch_size * lap.steps_per_second
    own = torch.tensor([[lap.waiting, peak_memory(job.ranks.device)]], dtype=torch.float64, device=job.ranks.device)
    waiting, memory = job.ranks.gather(own).T
    return {**values, "lr": learning_rate(job.config, step - 1, job.steps),
            "update_ratio": update_ratio(job.state.optimizer).item(), "img_per_s": speed,
            "mfu": measure.utilisation(speed), "data_wait": waiting.mean().item(), "memory_gib": memory.max().item()}


def announce(job: Job) -> None:
    """Tell what was decided at the start, where there was anything to decide."""
    if job.ranks.world > 1:
        print(f"parallel    {job.parallel}", flush=True)
    before = checkpoint_card(last) if (last := latest(job.run)) else job.card
    if changed := changes(before, job.card):
        print(f"changed     {'; '.join(changed.values())}", flush=True)


def farewell(job: Job, done: int) -> None:
    """Tell where everything is."""
    run = quoted(job.run)
    if done < job.steps:
        print(f"stopped after step {done} of {job.steps}; continue with: python train.py --resume {run}")
        return
    if job.finished:
        longer = f"--epochs {2 * job.config.epochs:g}" if job.config.epochs else f"--steps {2 * done}"
        print(f"all {done} steps were done before, and {job.run} is as it was; for more, pass more, such as {longer}")
    print(f"run         {job.run}\ncheckpoint  {latest(job.run)}\nloss curve  {job.run / 'loss.png'}")
    print(f"page        dit report {run}")
    if is_classifier(job.config.model):
        print(f"accuracy    {job.run / 'accuracy.png'}")
        return
    if job.config.sample_every:
        print(f"samples     {job.run / 'samples'}")
    if job.config.eval_every:
        print(f"scores      {job.run / 'scores.png'}; how they were made: {job.run / 'scores.json'}")
    if job.config.ema_lengths:
        print(f"averages    {job.run / FOLDER}; one of any length: dit ema {run} --length 0.07")
    if (best := find_best(job.run)) and (job.run / BEST).exists():
        step, distance = checkpoint_step(best.checkpoint), best.distance
        print(f"best        {job.run / BEST} (step {step}, {distance.name} {distance.value:.4g})")
    print(f"next        python sample.py --run {run}")
