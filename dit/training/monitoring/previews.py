"""Pictures of a run as it learns: the same seeds and classes every time."""

from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import nn

from dit.build import build_denoiser
from dit.config import SamplerConfig
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import Captioned, Captions
from dit.runs.card import ModelCard
from dit.runs.checkpoints import paths_by_step
from dit.runs.weights import Weights
from dit.sampling.grid import draw_grid
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import build_pipeline
from dit.utils import pictures

SETTINGS = SamplerConfig(sampler="dpmpp_2m", steps=20)
CFG_SCALE = 1.5
CLASSES, PER_CLASS = 10, 4


def sampler_settings(card: ModelCard) -> SamplerConfig:
    """How pictures and scores of a run in training are sampled: quickly, and guided a little."""
    guided = (
        card.config.label_dropout and not card.unconditional
    )  # else there is no null class, or nothing else
    precision = card.config.precision
    return replace(
        SETTINGS,
        precision="bf16" if precision == "fp8" else precision,  # averages have no float8 layers
        cfg_scale=CFG_SCALE if guided else 1.0,
    )


def ema_run(
    card: ModelCard, average: nn.Module, autoencoder: Autoencoder, captions: Captions | None = None
) -> LoadedRun:
    """The EMA of a run in training, ready to sample from; its weights are in no file yet."""
    denoise = build_denoiser(card.config, Captioned(average, captions) if captions else average)
    return LoadedRun(Weights(Path(), card, 0, {}), denoise, autoencoder, autoencoder.device)


class Previews:
    """Grids from the EMA in samples/, and the strip of them all; grids after `start` are of steps done again."""

    def __init__(
        self,
        run: Path,
        card: ModelCard,
        autoencoder: Autoencoder,
        start: int,
        captions: Captions | None = None,
    ):
        self.folder, self.card, self.autoencoder, self.captions = (
            run / "samples",
            card,
            autoencoder,
            captions,
        )
        for step, file in self.grids().items():
            if step > start:
                file.unlink()

    def grids(self) -> dict[int, Path]:
        """The grids drawn so far, by step."""
        return paths_by_step(self.folder, ".png")

    def draw(self, step: int, average: nn.Module) -> Image.Image:
        """Sample a grid and write samples/step-N.png."""
        run = ema_run(self.card, average, self.autoencoder, self.captions)
        rows = self.card.ids * CLASSES if self.card.unconditional else self.card.ids[:CLASSES]
        pipeline = build_pipeline(run, sampler_settings(self.card), rows)
        picture = draw_grid(pipeline, PER_CLASS)
        self.folder.mkdir(parents=True, exist_ok=True)
        picture.save(self.folder / f"step-{step:07d}.png")
        return picture

    def finish(self) -> None:
        """How the picture formed: samples/strip.png and samples/strip.gif."""
        if files := self.grids():
            grids = [Image.open(file) for file in files.values()]
            pictures.strip(grids, [f"step {step}" for step in files]).save(
                self.folder / "strip.png"
            )
            pictures.gif(grids, self.folder / "strip.gif")
