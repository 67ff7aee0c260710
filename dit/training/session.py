"""A run about to start."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.distributed.fsdp import FSDPModule

from dit.build import build_network
from dit.config import TrainConfig
from dit.diffusion.objective import LossFunction
from dit.diffusion.process import Process
from dit.distributed.parallel import full_tensor
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import Captions
from dit.latents.store import Latents
from dit.runs.card import ModelCard
from dit.training.cost.ddp_or_fsdp import ALONE, Choice
from dit.training.state import State


@dataclass(frozen=True)
class TrainingSession:
    """What the loop needs, and where it starts."""

    run: Path
    card: ModelCard
    ranks: Ranks
    source: Latents
    autoencoder: Autoencoder
    state: State
    network: nn.Module  # as DDP and the compiler wrap it
    process: Process
    loss: LossFunction  # of that network in that process
    start: int
    steps: int
    parallel: Choice = ALONE  # what ranks hold
    captions: Captions | None = None  # of the data, for --conditioning text
    returns: int = 0  # to the checkpoint at `start`, after the run diverged

    @property
    def config(self) -> TrainConfig:
        """Settings of the run."""
        return self.card.config

    @property
    def finished(self) -> bool:
        """Whether all steps were done before."""
        return self.start == self.steps

    def average(self) -> nn.Module:
        """The EMA to sample from; where ranks have shares of it a whole copy, which all of them must ask for."""
        ema = self.state.ema.network
        if not isinstance(ema, FSDPModule):
            return ema
        network = (
            build_network(self.card.network).to(self.ranks.device).eval().requires_grad_(False)
        )
        network.load_state_dict(
            {name: full_tensor(tensor) for name, tensor in ema.state_dict().items()}
        )
        return network
