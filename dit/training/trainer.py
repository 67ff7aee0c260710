"""The training loop."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dit.build import (
    build_card,
    build_loss,
    build_network,
    build_process,
    build_source,
    build_text_encoder,
    initialise,
    normalised,
)
from dit.config import TrainConfig
from dit.data.order import generator
from dit.diffusion.importance import LossAware
from dit.errors import UserError
from dit.files import write_json
from dit.hardware import Ranks, autocast, choose_attention
from dit.latents.autoencoder import Autoencoder, load_autoencoder
from dit.latents.store import Latents
from dit.models.create import check_name, is_classifier
from dit.runs import BEST, Card, checkpoint_step, find_best, is_distance, latest
from dit.text import Captioned, Captions, TextEncoder
from dit.training import checkpoint
from dit.training.batches import Batch, Batches, training_times
from dit.training.checkpoint import State
from dit.training.dry_run import describe
from dit.training.ema import EMA
from dit.training.job import Job
from dit.training.metrics_log import Found, Stopwatch, Window
from dit.training.reporter import Reporter
from dit.training.run_directory import open_run
from dit.training.schedule import learning_rate, total_steps
from dit.training.signals import Stop, stop_on_signals

if TYPE_CHECKING:
    from dit.training.scores import Scores, Yardstick


def train(config: TrainConfig, ranks: Ranks, kin: Card | None = None) -> Path | None:
    """Train, or continue, a run; its directory (None after a dry run).

    Args:
        kin: of a run whose latent statistics it shares; its own where it goes on, else measured.

    Raises:
        UserError: settings, data or files that do not fit; numbers that are not finite.
    """
    check_name(config.model, config.conditioning)  # a wrong one is told before anything is loaded
    share = ranks.world * config.grad_accum
    if config.global_batch_size % share:
        raise UserError(f"--global-batch-size {config.global_batch_size} on {ranks.world} ranks with --grad-accum "
                        f"{config.grad_accum}", f"a multiple of {share}", "change one of them")
    autoencoder = load_autoencoder(config.vae, ranks.device)
    source = build_source(config, autoencoder)
    encoder = build_text_encoder(config, ranks.device)
    before = Card.read(config.out) if config.resume and config.out and latest(config.out) else None
    card = build_card(config, source, encoder, before or kin)
    yardstick = choose_yardstick(config, ranks)
    if config.dry_run:
        if ranks.main:
            print(describe(card, source, autoencoder, ranks, encoder))
        return None
    job = prepare(card, source, normalised(autoencoder, card), ranks, encoder)
    if job.start > job.steps:
        raise UserError(f"--steps {job.steps} for {job.run}, which has done {job.start}", "more steps than that",
                        "pass more --steps")
    scores = yardstick.prepare(job) if yardstick else None
    with ranks.alone_in(job.run), stop_on_signals(ranks) as stop:
        if ranks.main:
            write_json(job.run / "config.json", card.to_json())
        done = loop(job, scores, stop)
    if ranks.main:
        farewell(job, done)
    return job.run


def prepare(card: Card, source: Latents, autoencoder: Autoencoder, ranks: Ranks, encoder: TextEncoder | None = None
            ) -> Job:
    """Network, optimizer and EMA, fresh or as the checkpoint left them."""
    config = card.config
    run, last = open_run(card, ranks)
    torch.manual_seed(config.seed)
    network = build_network(card.network).to(ranks.device)
    if config.init and not last:
        initialise(network, card, config.init)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, config.lr, (0.9, config.beta2), weight_decay=config.weight_decay, fused=True)
    process, called = build_process(config), parallel(network, config, ranks)
    captions = Captions(source.classes, "", encoder) if encoder else None
    loss, terms = build_loss(config, Captioned(called, captions) if captions else called, process)
    times = LossAware(int(process.end)) if config.time_sampling == "loss-aware" else None
    state = State(network, optimizer, EMA(network, config.ema), Window(("loss", "grad_norm", *terms), ranks.device),
                  times)
    start = checkpoint.load(last, state, ranks) if last else 0
    return Job(run, card, ranks, source, autoencoder, state, called, process, loss, start,
               total_steps(config, len(source.labels)), captions)


def parallel(network: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """The network as the loop calls it: with the quicker attention, averaging gradients over ranks, and compiled."""
    choose_attention(network, ranks.device, config.precision)
    wrapped = DistributedDataParallel(network, gradient_as_bucket_view=True) if ranks.world > 1 else network
    compiled = ranks.device.type == "cuda" if config.compile is None else config.compile
    return torch.compile(wrapped) if compiled else wrapped  # type: ignore[return-value]


def choose_yardstick(config: TrainConfig, ranks: Ranks) -> "Yardstick | None":
    """What --eval-every compares with; its code is imported only where it is on."""
    if not config.eval_every:
        return None
    from dit.training import scores

    return scores.choose_yardstick(config, ranks)


def loop(job: Job, scores: "Scores | None", stop: Stop) -> int:
    """All steps from the start, with their logs, pictures, scores and checkpoints; the number of steps done."""
    config, size, step, watch = job.config, job.config.global_batch_size, job.start, Stopwatch()
    reporter, shown, coming = Reporter(job) if job.ranks.main else None, {"loss": "–"}, Batches(job)
    if job.ranks.main:
        checkpoint.tidy(job.run, config.keep)  # a kill may have come before it
    with tqdm(total=job.steps * size, initial=step * size, unit="img", unit_scale=True, desc="train",
              disable=not job.ranks.main) as bar:
        for step, batch in enumerate(coming, start=job.start + 1):
            train_step(job, batch, step)
            last = stop.now(step) or step == job.steps
            logs, draws, judges = (due(step, every, job.steps)
                                   for every in (config.log_every, config.sample_every, config.eval_every))
            saves = due(step, config.ckpt_every, job.steps) or last
            if logs or draws or judges or saves or step % 10 == 0:
                require_finite(job)
            values = averages(job, step, watch) if logs else {}
            with watch.paused():
                found = Found()
                if scores and judges:
                    coming.settle()
                    found = scores.measure(step)
                if reporter:
                    reporter.write(step, values, found)
                    if draws:
                        reporter.draw(step)
                if saves or found.leads:
                    checkpoint.save(job.run, step, job.state, job.card, config.keep, job.ranks, found.distance)
            shown |= headline({**values, **found.scores})
            bar.set_postfix({"step": step, **shown}, refresh=False)
            bar.update(size)
            if last:
                break
    if reporter:
        reporter.finish()
    return step


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps (0 = never), and after the last, happens after this one."""
    return every > 0 and (step % every == 0 or step == steps)


def averages(job: Job, step: int, watch: Stopwatch) -> dict[str, float]:
    """What the log says of the steps since its last line."""
    values = job.state.window.close(job.ranks)  # waits for the device, so that the watch sees all of its work
    speed = job.config.global_batch_size * watch.steps_per_second(step - job.start)
    return {**values, "lr": learning_rate(job.config, step - 1, job.steps), "img_per_s": speed}


def headline(numbers: dict[str, float]) -> dict[str, str]:
    """Those of them that the bar shows."""
    return {name: f"{value:.4g}" for name, value in numbers.items() if name == "loss" or is_distance(name)}


def train_step(job: Job, batch: Batch, step: int) -> None:
    """Noise, loss, gradients over all micro-batches, one optimizer step, EMA. `step` counts from 1."""
    config, state, device = job.config, job.state, job.ranks.device
    mean = batch.moments.chunk(2, dim=1)[0]
    random = generator(config.seed, step - 1, 1 + job.ranks.rank, device=device)
    posterior_noise, eps = torch.randn(2, *mean.shape, generator=random, device=device)
    x0 = job.autoencoder.draw(batch.moments.to(device, non_blocking=True), posterior_noise)
    t, weights = training_times(job, batch, step - 1)  # t is looked up on CPU
    parts = [v.chunk(config.grad_accum) for v in (x0, batch.labels.to(device), t, eps, weights)]
    losses = []  # of each micro-batch, unweighted
    logged = torch.zeros(len(state.window.names) - 1, device=device)
    for i, (*micro, weight) in enumerate(zip(*parts, strict=True)):
        with synchronised(job.network, i == config.grad_accum - 1), autocast(device, config.precision):
            plain = job.loss(*micro)
        loss = plain.weighted(weight)
        (loss.total / config.grad_accum).backward()
        logged += torch.stack([loss.total.detach(), *(v.mean() for v in loss.terms.values())]) / config.grad_accum
        losses.append(plain.each.detach())
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.clip or float("inf"))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, step - 1, job.steps)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.network, step)
    state.window.add(step, (logged[0], norm, *logged[1:]))
    if state.times:
        state.times.update(*job.ranks.gather(torch.stack([t.to(device), torch.cat(losses)], dim=1)).cpu().T)


def synchronised(network: nn.Module, last: bool):  # type: ignore[no-untyped-def]
    """Let ranks average gradients in the last micro-batch only."""
    wrapped = getattr(network, "_orig_mod", network)  # under the compiler
    return nullcontext() if last or not isinstance(wrapped, DistributedDataParallel) else wrapped.no_sync()


def require_finite(job: Job) -> None:
    """Stop a run whose loss or gradient is NaN or infinite.

    Raises:
        UserError: on all ranks, with the step and the last good checkpoint.
    """
    bad = job.state.window.first_bad_step(job.ranks)
    if bad:
        good = latest(job.run)
        kept = f"{good} is the last good checkpoint" if good else "no checkpoint was written yet"
        raise UserError(f"loss or gradient is not finite at step {bad}", "finite numbers",
                        f"lower --lr, or pass --precision fp32; {kept}")


def farewell(job: Job, done: int) -> None:
    """Tell where everything is."""
    if done < job.steps:
        print(f"stopped after step {done} of {job.steps}; continue with: python train.py --resume {job.run}")
        return
    print(f"run         {job.run}\ncheckpoint  {latest(job.run)}\nloss curve  {job.run / 'loss.png'}")
    if is_classifier(job.config.model):
        print(f"accuracy    {job.run / 'accuracy.png'}")
        return
    if job.config.sample_every:
        print(f"samples     {job.run / 'samples'}")
    if job.config.eval_every:
        print(f"scores      {job.run / 'scores.png'}; how they were made: {job.run / 'scores.json'}")
    if (best := find_best(job.run)) and (job.run / BEST).exists():
        step, distance = checkpoint_step(best.checkpoint), best.distance
        print(f"best        {job.run / BEST} (step {step}, {distance.name} {distance.value:.4g})")
    print(f"next        python sample.py --run {job.run}")
