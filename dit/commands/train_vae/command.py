"""The command `dit train-vae`: train a first stage, measure it on held-out images, and save it."""

from pathlib import Path

import numpy as np

from dit.commands.train_vae.batches import split
from dit.commands.train_vae.checkpoint import CHECKPOINT
from dit.commands.train_vae.inputs import load_shown, open_images, stamp_of
from dit.commands.train_vae.learner import Learner
from dit.commands.train_vae.loop import Split, fit
from dit.commands.train_vae.networks import latent_sides, require_network_fits, save
from dit.commands.train_vae.quality import choose_extractor, latent_statistics, measure
from dit.commands.train_vae.report import (
    PICTURE,
    Report,
    draw_loss,
    draw_reconstructions,
    print_report,
    print_stopped,
    read_report,
    write_report,
)
from dit.commands.train_vae.resume import find_stopped, is_finished, require_same_images
from dit.config import VaeConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.training.resilience.preemption import stop_on_signals

MAX_FOR_STATISTICS = 10_000  # images


def train_vae(config: VaeConfig, ranks: Ranks) -> Path:
    """Train and save a first stage, or continue one, and report its quality; return its folder.

    Flags, data and weights are checked before training. The folder is an autoencoder once it has a
    config.json, which is written after the weights.

    Raises:
        UserError: a mistake in flags, files or images; a loss that is not finite.
    """
    cfg = config.resolved()
    if ranks.world > 1:
        raise UserError(
            f"{ranks.world} processes for dit train-vae", "one", "start it without torchrun"
        )
    latent_sides(cfg)  # refuses a size that does not fit
    require_network_fits(cfg, ranks.device)
    if is_finished(cfg):
        print(f"all {cfg.steps} steps were done before, and {cfg.out} is unchanged")
        report = read_report(cfg.out)
        report["config"] = cfg
        print_report(report)
        return cfg.out

    stopped = find_stopped(cfg)
    images, readable = open_images(cfg, ranks)
    training, held_out = (readable[part] for part in split(cfg, len(readable)))
    if stopped:
        require_same_images(stopped, len(training), stamp_of(images), cfg)
    # before training: missing weights are no surprise at its end
    extractor = choose_extractor(cfg, ranks)
    learner = Learner.create(cfg, ranks.device)
    parts = Split(images, training, load_shown(images, held_out))

    with ranks.lock_folder(cfg.out):
        with stop_on_signals(ranks) as stop:
            done = fit(learner, parts, cfg, stopped, stop.now)
        if done.step < cfg.steps:
            print_stopped(cfg, done.step)
            return cfg.out
        finish(learner, parts, held_out, extractor, cfg, done.seconds)
    return cfg.out


def finish(
    learner: Learner,
    parts: Split,
    held_out: np.ndarray,
    extractor: Extractor,
    cfg: VaeConfig,
    seconds: float,
) -> None:
    """Save a trained network with statistics of its latents; measure it, report, remove the rest.

    The checkpoint goes last: until then --resume does this again.
    """
    draw_loss(cfg.out)
    seen = parts.indices[:MAX_FOR_STATISTICS]
    mean, std = latent_statistics(
        learner.network, parts.images, seen, cfg.batch_size, learner.device
    )
    save(learner.network, cfg.out, mean, std)

    # measure the saved files, as train.py will load them
    autoencoder = load_autoencoder(str(cfg.out.resolve()), learner.device)
    scores = measure(autoencoder, parts.images, held_out, extractor, cfg.batch_size, cfg.seed)
    draw_reconstructions(autoencoder, parts.shown, cfg.out / PICTURE)
    report = Report(
        scores=scores,
        held_out=len(held_out),
        parameters=sum(p.numel() for p in learner.network.parameters()),
        seconds=round(seconds, 1),
        config=cfg,
    )
    write_report(cfg.out, report)
    (cfg.out / CHECKPOINT).unlink()
    print_report(report)
