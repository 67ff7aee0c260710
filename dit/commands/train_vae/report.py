"""The results of `dit train-vae`: report.json, pictures, and the summary on the terminal."""

from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from dit.commands.train_vae.checkpoint import with_absolute_paths
from dit.config import VaeConfig, to_json
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.psnr import GOOD, compute_psnr, describe_psnr, reconstruct
from dit.runs.checkpoint_files import paths_by_step
from dit.runs.logs import read_metrics
from dit.utils.files import command_line, shell_quote, write_json
from dit.utils.image_size import size_flag
from dit.utils.pictures import fitting_scale, grid, loss_curve, write_png
from dit.utils.typed_json import read_json

LOG, REPORT, CURVE, PICTURE = "metrics.jsonl", "report.json", "loss.png", "reconstructions.png"
SAMPLES = "samples"  # folder of the pictures during training


def draw_loss(out: Path) -> None:
    """Plot the loss in a folder's log."""
    loss_curve(read_metrics(out / LOG), out / CURVE)


def draw_reconstructions(autoencoder: Autoencoder, originals: Tensor, file: Path) -> float:
    """Draw uint8 images [B, 3, H, W] above their reconstructions; return the PSNR of these."""
    outputs = reconstruct(autoencoder, autoencoder.encode(originals))
    height, width = originals.shape[2:]
    both = torch.cat([originals, outputs])
    figure = grid(
        both, ["original", "reconstruction"], len(originals), fitting_scale(max(height, width))
    )
    write_png(figure, file)
    return compute_psnr(originals, outputs)


class Previews:
    """Pictures in samples/ of the same held-out images, as the network reconstructs them.

    Args:
        start: pictures after this step are removed: the training does these steps again.
    """

    def __init__(self, out: Path, originals: Tensor, start: int):
        self.folder = out / SAMPLES
        self.originals = originals
        for step, file in paths_by_step(self.folder, ".png").items():
            if step > start:
                file.unlink()

    def draw(self, step: int, autoencoder: Autoencoder) -> float:
        """Write samples/step-N.png; return the PSNR of its images."""
        file = self.folder / f"step-{step:07d}.png"
        return draw_reconstructions(autoencoder, self.originals, file)


class Report(TypedDict):
    """What report.json holds."""

    scores: dict[str, float | str]
    held_out: int
    parameters: int
    seconds: float
    config: VaeConfig


def read_report(out: Path) -> Report:
    """Return the report of a training that is complete."""
    file = out / REPORT
    expected, do = "the report of dit train-vae", "choose another --out"
    return read_json(file, Report, expected, do)


def write_report(out: Path, report: Report) -> None:
    """Write report.json."""
    write_json(out / REPORT, {**report, "config": to_json(with_absolute_paths(report["config"]))})


def print_report(report: Report) -> None:
    """Print scores, whether they are enough, the files, and the next command."""
    cfg = report["config"]
    network = f"{cfg.kind} first stage, {report['parameters']:,} parameters"
    print(f"{network}, {report['seconds']:.0f} s; on {report['held_out']:,} held-out images:")
    for name, value in report["scores"].items():
        print(f"  {name}: {value if isinstance(value, str) else format(value, '.4g')}")
    for line in verdict(cfg, float(report["scores"]["PSNR"])):
        print(line)
    for file in (PICTURE, CURVE, REPORT):
        print(cfg.out / file)
    print(
        f"next: {command_line('train')} --data {shell_quote(cfg.data)} "
        f"--vae {shell_quote(cfg.out)} {size_flag(cfg.image_size)}"
    )


def print_stopped(cfg: VaeConfig, step: int) -> None:
    """Print how to continue a training that was stopped."""
    resume = f"dit train-vae --resume {shell_quote(cfg.out)}"
    print(f"stopped after step {step} of {cfg.steps}; continue with: {resume}")


def verdict(cfg: VaeConfig, psnr: float) -> list[str]:
    """Return in words whether a PSNR is enough and, where it is not good, what raises it."""
    lines = [f"quality: PSNR {describe_psnr(psnr)}"]
    if psnr >= GOOD:
        return lines
    wider = " ".join(str(2 * width) for width in cfg.channels)
    ways = [
        f"--steps {2 * cfg.steps}",
        f"--latent-channels {2 * cfg.latent_channels}",
        f"wider --channels, such as {wider}",
    ]
    if len(cfg.channels) > 2:
        factor = 2 ** (len(cfg.channels) - 1)
        ways.append(f"one of --channels less, to shrink by {factor // 2} and not by {factor}")
    return [*lines, f"to raise it, in a new folder: {'; '.join(ways)}"]
