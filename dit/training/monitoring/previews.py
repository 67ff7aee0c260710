"""Previews: grids of samples of a run in training, with the same seeds and classes every time."""

from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import nn

from dit.build import build_denoiser
from dit.config import SamplerConfig, TrainConfig
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import Captioned, Captions
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import paths_by_step
from dit.runs.weights import Weights
from dit.sampling.image_grid import draw_grid
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import build_pipeline
from dit.sampling.resolve import has_null_class
from dit.utils import pictures
from dit.utils.files import command_line, shell_quote

SETTINGS = SamplerConfig(sampler="dpmpp_2m", steps=20)
FEW_STEPS = SamplerConfig(sampler="euler", steps=2)  # of --objective meanflow
CFG_SCALE = 1.5
CLASSES, PER_CLASS = 10, 4  # rows and columns of a grid


def preview_settings(card: ModelCard) -> SamplerConfig:
    """Return how a run in training is sampled: in few steps, with weak guidance if it can be
    guided."""
    guided = _is_guided(card.config, has_null_class(card))
    precision = card.config.precision
    if precision == "fp8":
        # averages have no float8 layers
        precision = "bf16"
    settings = FEW_STEPS if card.network.interval else SETTINGS
    return replace(settings, precision=precision, cfg_scale=CFG_SCALE if guided else 1.0)


def _is_guided(config: TrainConfig, null_class: bool) -> bool:
    # a network of meanflow may have learned its own guidance
    return null_class and config.meanflow_scale == 1


def images_of_grid(classes: int) -> int:
    """Return the images of a grid of so many classes; 0: unconditional."""
    return PER_CLASS * (min(CLASSES, classes) or CLASSES)


def passes_per_image(config: TrainConfig, classes: int) -> int:
    """Return the forward passes that an image of a grid takes."""
    settings = FEW_STEPS if config.objective == "meanflow" else SETTINGS
    assert settings.steps is not None
    guided = _is_guided(config, bool(classes and config.label_dropout))
    return settings.steps * (1 + guided)


def sample_command(path: Path, card: ModelCard) -> str:
    """Return the command that samples a run, or a file of weights, with the previews' guidance."""
    scale = preview_settings(card).cfg_scale
    guidance = "" if scale == 1 else f" --cfg-scale {scale:g}"
    return f"{command_line('sample')} --run {shell_quote(path)}{guidance}"


def ema_run(
    card: ModelCard, average: nn.Module, autoencoder: Autoencoder, captions: Captions | None = None
) -> LoadedRun:
    """Return the EMA of a run in training, ready to sample from."""
    denoise = build_denoiser(card.config, Captioned(average, captions) if captions else average)
    in_no_file = Weights(Path(), card, 0, {})
    return LoadedRun(in_no_file, denoise, autoencoder, autoencoder.device)


class Previews:
    """Grids from the EMA in samples/, and the strip of all of them.

    Args:
        start: grids after this step are removed: the run does these steps again.
    """

    def __init__(
        self,
        run: Path,
        card: ModelCard,
        autoencoder: Autoencoder,
        start: int,
        captions: Captions | None,
    ):
        self.folder = run / "samples"
        self.card = card
        self.autoencoder = autoencoder
        self.captions = captions
        for step, file in self.grids().items():
            if step > start:
                file.unlink()

    def grids(self) -> dict[int, Path]:
        return paths_by_step(self.folder, ".png")

    def draw(self, step: int, average: nn.Module) -> Image.Image:
        """Sample a grid and write samples/step-N.png."""
        run = ema_run(self.card, average, self.autoencoder, self.captions)
        rows = self.card.ids[:CLASSES]
        if self.card.unconditional:
            rows = self.card.ids * CLASSES
        pipeline = build_pipeline(run, preview_settings(self.card), rows)
        picture = draw_grid(pipeline, PER_CLASS)
        pictures.write_png(picture, self.folder / f"step-{step:07d}.png")
        return picture

    def finish(self) -> None:
        """Write samples/strip.png and samples/strip.gif: the grids over training."""
        if files := self.grids():
            grids = [Image.open(file) for file in files.values()]
            strip = pictures.strip(grids, [f"step {step}" for step in files])
            pictures.write_png(strip, self.folder / "strip.png")
            pictures.gif(grids, self.folder / "strip.gif")
