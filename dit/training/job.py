"""A run about to start."""

from dataclasses import dataclass
from pathlib import Path

from dit.config import TrainConfig
from dit.diffusion.denoiser import Denoiser
from dit.hardware import Ranks
from dit.latents.autoencoder import Autoencoder
from dit.latents.store import Latents
from dit.runs import Card
from dit.training.checkpoint import State


@dataclass(frozen=True)
class Job:
    """What the loop needs, and where it starts."""

    run: Path
    card: Card
    ranks: Ranks
    source: Latents
    autoencoder: Autoencoder
    state: State
    denoise: Denoiser  # around the network as DDP and the compiler wrap it
    start: int
    steps: int

    @property
    def config(self) -> TrainConfig:
        """Settings of the run."""
        return self.card.config
