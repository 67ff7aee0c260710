"""The results of `dit train-vae`: report.json, figures, and the summary on the terminal."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit.commands.train_vae.quality import Scores
from dit.config import VaeConfig, to_json
from dit.data.images import Images
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.psnr import reconstruct
from dit.runs.logs import read_metrics
from dit.utils.files import command_line, shell_quote, write_json
from dit.utils.image_size import sides, size_flag
from dit.utils.pictures import fitting_scale, grid, loss_curve, write_png

LOG, REPORT, CURVE, PICTURE = "metrics.jsonl", "report.json", "loss.png", "reconstructions.png"
SHOWN = 10  # images


def draw_loss(out: Path) -> None:
    """Plot the loss in a folder's log."""
    loss_curve(read_metrics(out / LOG), out / CURVE)


def draw_reconstructions(
    autoencoder: Autoencoder, images: Images, indices: np.ndarray, out: Path
) -> None:
    """Draw the first images at `indices` above their reconstructions."""
    shown = indices[:SHOWN]
    originals = torch.stack([images[int(i)] for i in shown])
    both = torch.cat([originals, reconstruct(autoencoder, autoencoder.encode(originals))])
    scale = fitting_scale(max(sides(images.image_size)))
    figure = grid(both, ["original", "reconstruction"], len(shown), scale)
    write_png(figure, out / PICTURE)


def report(cfg: VaeConfig, network: Any, scores: Scores, held_out: int, seconds: float) -> None:
    """Write report.json, and print it with the next command."""
    parameters = sum(p.numel() for p in network.parameters())
    values = {
        "scores": scores,
        "held_out": held_out,
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "config": to_json(cfg),
    }
    write_json(cfg.out / REPORT, values)

    network_line = f"{cfg.kind} first stage, {parameters:,} parameters, {seconds:.0f} s"
    print(f"{network_line}; on {held_out:,} held-out images:")
    for name, value in scores.items():
        print(f"  {name}: {value if isinstance(value, str) else format(value, '.4g')}")
    for file in (PICTURE, CURVE, REPORT):
        print(cfg.out / file)
    print(
        f"next: {command_line('train')} --data {shell_quote(cfg.data)} "
        f"--vae {shell_quote(cfg.out)} {size_flag(cfg.image_size)}"
    )
