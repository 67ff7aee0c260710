"""A run about to start."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dit.config import TrainConfig
from dit.diffusion.objective import LossFunction
from dit.diffusion.process import Process
from dit.hardware import Ranks
from dit.latents.autoencoder import Autoencoder
from dit.latents.store import Latents
from dit.runs import Card
from dit.text import Captions
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
    network: nn.Module  # as DDP and the compiler wrap it
    process: Process
    loss: LossFunction  # of that network in that process
    start: int
    steps: int
    captions: Captions | None = None  # of the data, for --conditioning text

    @property
    def config(self) -> TrainConfig:
        """Settings of the run."""
        return self.card.config
