"""The command `dit train-vae`: train a first stage, measure it on held-out images, and save it."""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.commands.train_vae.batches import batches, split
from dit.commands.train_vae.inputs import check_out, open_images
from dit.commands.train_vae.learner import Learner
from dit.commands.train_vae.networks import latent_sides, require_network_fits, save
from dit.commands.train_vae.quality import choose_extractor, latent_statistics, measure
from dit.commands.train_vae.report import LOG, draw_loss, draw_reconstructions, report
from dit.config import VaeConfig
from dit.data.images import Images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.utils.files import create_new, name_file_in_errors

LOG_EVERY = 20  # steps
MAX_FOR_STATISTICS = 10_000  # images


def train_vae(config: VaeConfig, ranks: Ranks) -> Path:
    """Train and save a first stage, and report its quality; return its folder.

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
    check_out(cfg)
    images, readable = open_images(cfg, ranks)
    training, held_out = (readable[part] for part in split(cfg, len(readable)))
    # before training: missing weights are no surprise at its end
    extractor = choose_extractor(cfg, ranks)
    learner = Learner.create(cfg, ranks.device)

    with ranks.lock_folder(cfg.out):
        seconds = fit(learner, images, training, cfg)
        draw_loss(cfg.out)

        seen = training[:MAX_FOR_STATISTICS]
        mean, std = latent_statistics(learner.network, images, seen, cfg.batch_size, ranks.device)
        save(learner.network, cfg.out, mean, std)

        # measure the saved files, as train.py will load them
        autoencoder = load_autoencoder(str(cfg.out.resolve()), ranks.device)
        scores = measure(autoencoder, images, held_out, extractor, cfg.batch_size, cfg.seed)
        draw_reconstructions(autoencoder, images, held_out, cfg.out)
        report(cfg, learner.network, scores, len(held_out), seconds)
    return cfg.out


def fit(learner: Learner, images: Images, indices: np.ndarray, cfg: VaeConfig) -> float:
    """Train on the images at `indices`, and log to metrics.jsonl; return the seconds it took."""
    start = time.monotonic()
    recent: list[dict[str, Tensor]] = []
    file = cfg.out / LOG
    create_new(file)
    with (
        closing(batches(images, indices, cfg)) as source,
        name_file_in_errors(file),
        file.open("w", encoding="utf-8") as log,
        tqdm(total=cfg.steps * cfg.batch_size, desc=f"train {cfg.kind}", unit="img") as bar,
    ):
        for step in range(1, cfg.steps + 1):
            lr = learner.lr
            x, noise = next(source)
            recent.append(learner.step(step, x.to(learner.device), noise, cfg))
            bar.update(cfg.batch_size)

            if step % LOG_EVERY == 0 or step == cfg.steps:
                values = mean_values(recent)
                recent.clear()
                check_finite(values, step, cfg)
                log.write(json.dumps({"step": step, **values, "lr": lr}) + "\n")
                log.flush()
                shown = {name: f"{value:.4f}" for name, value in values.items()}
                bar.set_postfix(shown, refresh=False)
    return time.monotonic() - start


def mean_values(steps: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean of each logged value over the steps that have it."""
    means = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        values = [step[name].cpu().double() for step in steps if name in step]
        means[name] = float(torch.stack(values).mean())
    return means


def check_finite(values: dict[str, float], step: int, cfg: VaeConfig) -> None:
    """Refuse to go on after a loss that is not finite."""
    if not np.isfinite(list(values.values())).all():
        shown = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        raise UserError(
            f"the loss is not finite by step {step} ({shown})",
            "finite numbers",
            f"lower --lr (it is {cfg.lr:g}) or pass --precision fp32",
        )
