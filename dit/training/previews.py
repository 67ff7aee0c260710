"""Pictures of a run as it learns: the same seeds and classes every time."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from dit import pictures
from dit.build import Run, build_denoiser
from dit.config import SamplerConfig, TrainConfig
from dit.generate import sample_grid
from dit.latents.autoencoder import Autoencoder
from dit.runs import Card, Weights
from dit.training.ema import EMA

SETTINGS = SamplerConfig(sampler="dpmpp_2m", steps=20)
CFG_SCALE = 1.5
CLASSES, PER_CLASS = 10, 4


def sampler_settings(config: TrainConfig) -> SamplerConfig:
    """How pictures and scores of a run in training are sampled: quickly, and guided a little."""
    scale = CFG_SCALE if config.label_dropout else 1.0  # without dropped labels there is no null class
    return replace(SETTINGS, precision=config.precision, cfg_scale=scale)


def ema_run(card: Card, ema: EMA, autoencoder: Autoencoder) -> Run:
    """The EMA of a run in training, ready to sample from; its weights are in no file yet."""
    denoise = build_denoiser(card.config, ema.network)
    return Run(Weights(Path(), card, 0, {}), denoise, autoencoder, autoencoder.device)


class Previews:
    """Grids from the EMA in samples/, and the strip of them all; grids after `start` are of steps done again."""

    def __init__(self, run: Path, card: Card, ema: EMA, autoencoder: Autoencoder, start: int):
        self.folder, self.card, self.ema, self.autoencoder = run / "samples", card, ema, autoencoder
        for step, file in self.grids().items():
            if step > start:
                file.unlink()

    def grids(self) -> dict[int, Path]:
        """The grids drawn so far, by step."""
        return {int(f.stem.removeprefix("step-")): f for f in sorted(self.folder.glob("step-*.png"))}

    def draw(self, step: int) -> Image.Image:
        """Sample a grid and write samples/step-N.png."""
        run = ema_run(self.card, self.ema, self.autoencoder)
        classes = list(range(min(CLASSES, len(self.card.classes))))
        images, _ = sample_grid(run, sampler_settings(self.card.config), classes, PER_CLASS)
        names = [self.card.class_name(i) for i in classes]
        picture = pictures.grid(images, names, PER_CLASS, pictures.fitting_scale(images.shape[-1]))
        self.folder.mkdir(parents=True, exist_ok=True)
        picture.save(self.folder / f"step-{step:07d}.png")
        return picture

    def finish(self) -> None:
        """How the picture formed: samples/strip.png and samples/strip.gif."""
        if files := self.grids():
            grids = [Image.open(file) for file in files.values()]
            pictures.strip(grids, [f"step {step}" for step in files]).save(self.folder / "strip.png")
            pictures.gif(grids, self.folder / "strip.gif")
