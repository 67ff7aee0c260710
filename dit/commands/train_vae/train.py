"""Train a first stage, measure it on images that it has not seen, and save it for --vae."""

import json
import os
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dit.commands.train_vae.discriminator import GanLoss
from dit.commands.train_vae.losses import KINDS, KL, VQ, load_lpips
from dit.commands.train_vae.networks import create_network, latent_sides, save
from dit.commands.train_vae.quality import Scores, measure, reconstruct
from dit.config import VaeConfig, to_json
from dit.data.images import Images
from dit.data.sources import load_images
from dit.distributed.device import autocast
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder, codec_of, load_autoencoder
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.extractors.load import DIGITS_CNN
from dit.evaluation.references import choose_extractors
from dit.latents.moments import MomentSums, decode_batches
from dit.runs.metrics import read_metrics
from dit.utils.files import shell_quote, write_json
from dit.utils.image_size import sides, size_flag
from dit.utils.pictures import fitting_scale, grid, loss_curve

LOG, REPORT, CURVE, PICTURE = "metrics.jsonl", "report.json", "loss.png", "reconstructions.png"
LOG_EVERY = 20  # steps
MOST_HELD_OUT, MOST_FOR_STATISTICS, SHOWN = 5000, 10_000, 10  # images


def train_vae(config: VaeConfig, ranks: Ranks) -> Path:
    """Train and save the first stage that `config` asks for, and tell how good it is; its folder.

    All that can be wrong with flags, data and weights is found before training. The folder is an autoencoder once it
    has a config.json, which comes after the weights.

    Raises:
        UserError: a mistake in flags, files or images; a loss that is not finite.
    """
    cfg = config.resolved()
    if ranks.world > 1:
        raise UserError(
            f"{ranks.world} processes for dit train-vae", "one", "start it without torchrun"
        )
    latent_sides(cfg)
    images = load_images(cfg.data, cfg.image_size)
    training, held_out = split(cfg, len(images))
    extractor = choose_extractor(cfg, ranks)
    check_out(cfg)
    learner = Learner.create(cfg, ranks.device)
    with ranks.alone_in(cfg.out):
        seconds = fit(learner, images, training, cfg)
        loss_curve(read_metrics(cfg.out / LOG), cfg.out / CURVE)
        seen = training[:MOST_FOR_STATISTICS]
        save(
            learner.network,
            cfg.out,
            *statistics(learner.network, images, seen, cfg.batch_size, ranks.device),
        )
        autoencoder = load_autoencoder(str(cfg.out.resolve()), ranks.device)
        scores = measure(autoencoder, images, held_out, extractor, cfg.batch_size, cfg.seed)
        draw(autoencoder, images, held_out[:SHOWN]).save(cfg.out / PICTURE)
        report(cfg, learner.network, scores, len(held_out), seconds)
    return cfg.out


# -- before training -------------------------------------------------------------------------------------------------


def split(cfg: VaeConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to train on and of those held out, at random by the seed.

    Raises:
        UserError: fewer than 3 images.
    """
    if count < 3:
        raise UserError(
            f"{count} images in --data {cfg.data}", "3 or more, for 2 are held out", "add images"
        )
    held_out = min(count - 1, max(2, min(MOST_HELD_OUT, round(cfg.held_out * count))))
    order = np.random.default_rng(cfg.seed).permutation(count)
    return order[held_out:], order[:held_out]


def choose_extractor(cfg: VaeConfig, ranks: Ranks) -> Extractor | str:
    """The feature network of rFD; where none was asked for and the usual one is not to be had, the reason.

    Raises:
        UserError: the one asked for is not to be had.
    """
    auto = DIGITS_CNN if cfg.data == "digits" else "inception"
    try:
        return choose_extractors(
            [cfg.extractor], [cfg.weights] if cfg.weights else [], auto, ranks
        )[0]
    except UserError as error:
        if cfg.extractor != "auto" or cfg.weights:
            raise
        return error.given


def check_out(cfg: VaeConfig) -> None:
    """Whether the folder is new, empty, or what an interrupted training left.

    Raises:
        UserError: a file, a folder of something else, or one inside the data.
    """
    out = cfg.out.resolve()
    if cfg.data != "digits" and Path(cfg.data).expanduser().resolve() in (out, *out.parents):
        raise UserError(
            f"--out {cfg.out} lies in --data {cfg.data}",
            "a folder elsewhere: its pictures would be data",
            "choose another --out",
        )
    if out.exists() and not out.is_dir():
        raise UserError(
            f"--out {cfg.out} is a file", "a folder, new or empty", "choose another --out"
        )
    for path in out.iterdir() if out.exists() else ():
        if path.name not in (LOG, CURVE) and not path.name.startswith(
            "."
        ):  # an interrupted training leaves these
            raise UserError(
                f"--out {cfg.out} holds {path.name}",
                "a folder that is new or empty",
                "choose another --out, or delete what is there",
            )


# -- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learner:
    """What is trained, and by what.

    Args:
        forward: network, pixels and noise -> Pass.
        lpips: LPIPS of two batches of images in [-1, 1], or nothing.
    """

    network: Any
    forward: KL | VQ
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    lpips: Any | None
    adversary: GanLoss | None
    device: torch.device

    @classmethod
    def create(cls, cfg: VaeConfig, device: torch.device) -> "Learner":
        """Untrained; `cfg` is resolved.

        Raises:
            UserError: as `load_lpips`.
        """
        network = create_network(cfg).to(device).train()
        optimizer = torch.optim.AdamW(
            network.parameters(), cfg.lr, betas=(0.9, 0.99), weight_decay=0.0
        )
        rise = (
            0.1 if cfg.steps != 10 else 0.2
        )  # one step of ten would be a rise of no length, by which torch divides
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, cfg.lr, max(2, cfg.steps), pct_start=rise, cycle_momentum=False
        )
        return cls(
            network,
            KINDS[cfg.kind](cfg),
            optimizer,
            schedule,
            load_lpips(cfg.lpips).to(device) if cfg.lpips else None,
            GanLoss(cfg, device) if cfg.gan_weight else None,
            device,
        )

    def step(self, number: int, x: Tensor, noise: Tensor, cfg: VaeConfig) -> dict[str, Tensor]:
        """One step on pixels [B, 3, H, W] in [-1, 1]; numbers to log, `loss` first."""
        with autocast(self.device, cfg.precision):
            output, regulariser, terms = self.forward(self.network, x, noise)
            reconstruction = F.l1_loss(output, x)
            terms = {"l1": reconstruction, **terms}
            if self.lpips:
                assert cfg.lpips_weight is not None
                terms["lpips"] = self.lpips(output, x).mean()
                reconstruction = reconstruction + cfg.lpips_weight * terms["lpips"]
            loss = reconstruction + regulariser
            playing = self.adversary if self.adversary and number >= self.adversary.start else None
            if playing:
                verdict, told = playing.verdict(
                    output, reconstruction, self.network.decoder.conv_out.weight
                )
                loss, terms = loss + verdict, {**terms, **told}
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if playing:
            with autocast(self.device, cfg.precision):
                terms["discriminator"] = playing.learn(
                    x, output, self.optimizer.param_groups[0]["lr"]
                )
        self.schedule.step()
        return {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}


def fit(learner: Learner, images: Images, indices: np.ndarray, cfg: VaeConfig) -> float:
    """Train on the images at `indices`, a line of metrics.jsonl every so often; how many seconds it took.

    Raises:
        UserError: a loss that is not finite.
    """
    start, window = time.monotonic(), []
    with (
        closing(batches(images, indices, cfg)) as source,
        (cfg.out / LOG).open("w") as log,
        tqdm(total=cfg.steps * cfg.batch_size, desc=f"train {cfg.kind}", unit="img") as bar,
    ):
        for step in range(1, cfg.steps + 1):
            x, noise = next(source)
            rate = learner.optimizer.param_groups[0]["lr"]
            window.append(learner.step(step, x.to(learner.device), noise, cfg))
            bar.update(cfg.batch_size)
            if step % LOG_EVERY == 0 or step == cfg.steps:
                values = means(window)
                if not np.isfinite(list(values.values())).all():
                    told = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
                    raise UserError(
                        f"the loss is not finite by step {step} ({told})",
                        "finite numbers",
                        f"lower --lr (it is {cfg.lr:g}) or pass --precision fp32",
                    )
                log.write(json.dumps({"step": step, **values, "lr": rate}) + "\n")
                log.flush()
                bar.set_postfix(
                    {name: f"{value:.4f}" for name, value in values.items()}, refresh=False
                )
                window.clear()
    return time.monotonic() - start


def means(window: list[dict[str, Tensor]]) -> dict[str, float]:
    """Of each number, over the steps that have it."""
    names = dict.fromkeys(name for line in window for name in line)
    return {
        name: float(torch.stack([line[name].double() for line in window if name in line]).mean())
        for name in names
    }


def batches(
    images: Images, indices: np.ndarray, cfg: VaeConfig
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Endless pixels [B, 3, H, W] in [-1, 1] and standard normal noise [B, C, h, w].

    Threads decode the next batch while the caller has one; all random numbers come from one generator in order.
    """
    generator = torch.Generator().manual_seed(cfg.seed)
    latents = (cfg.batch_size, cfg.latent_channels, *latent_sides(cfg))
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as readers,
        ThreadPoolExecutor(1) as ahead,
    ):

        def draw() -> tuple[Tensor, Tensor]:
            chosen = indices[
                torch.randint(len(indices), (cfg.batch_size,), generator=generator).numpy()
            ]
            pixels = torch.stack(list(readers.map(images.__getitem__, chosen.tolist())))
            x = random_shift(to_unit(pixels), cfg.shift, generator)
            return x, torch.randn(latents, generator=generator)

        following = ahead.submit(draw)
        while True:
            current, following = following.result(), ahead.submit(draw)
            yield current


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def random_shift(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image of [B, C, H, W] by up to `most` pixels both ways; edges are repeated."""
    b, _, height, width = x.shape
    padded = F.pad(x, (most,) * 4, mode="replicate")
    down, right = torch.randint(2 * most + 1, (2, b, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)  # [B, H], [B, W]
    return padded.permute(0, 2, 3, 1)[
        torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None]
    ].movedim(3, 1)


# -- after training --------------------------------------------------------------------------------------------------


@torch.no_grad()
def statistics(
    network: Any, images: Images, indices: np.ndarray, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean [C] and deviation [C] of drawn z, over the images at `indices`; freezes the network."""
    codec = codec_of(network)
    sums = [
        MomentSums.of(torch.cat(codec.posterior(to_unit(batch).to(device)), dim=1).cpu())
        for batch in decode_batches(images, indices, batch_size)
    ]
    return sum(sums[1:], sums[0]).statistics()


def draw(autoencoder: Autoencoder, images: Images, indices: np.ndarray) -> Any:
    """A picture of the images at `indices` above their reconstructions."""
    originals = torch.stack([images[int(i)] for i in indices])
    both = torch.cat([originals, reconstruct(autoencoder, autoencoder.encode(originals))])
    return grid(
        both,
        ["original", "reconstruction"],
        len(indices),
        fitting_scale(max(sides(images.image_size))),
    )


def report(cfg: VaeConfig, network: Any, scores: Scores, count: int, seconds: float) -> None:
    """Write report.json, and print it with the command to type next."""
    parameters = sum(p.numel() for p in network.parameters())
    write_json(
        cfg.out / REPORT,
        {
            "scores": scores,
            "held_out": count,
            "parameters": parameters,
            "seconds": round(seconds, 1),
            "config": to_json(cfg),
        },
    )
    print(
        f"{cfg.kind} first stage, {parameters:,} parameters, {seconds:.0f} s; on {count:,} held-out images:"
    )
    for name, value in scores.items():
        print(f"  {name}: {value if isinstance(value, str) else format(value, '.4g')}")
    for file in (PICTURE, CURVE, REPORT):
        print(cfg.out / file)
    print(
        f"next: python train.py --data {shell_quote(cfg.data)} --vae {shell_quote(cfg.out)} "
        f"{size_flag(cfg.image_size)}"
    )
