"""A training about to start: every setting resolved, every object built."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.distributed.fsdp import FSDPModule

from dit.build import build_network
from dit.config import TrainConfig
from dit.diffusion.objective import LossFunction
from dit.distributed.parallel import full_tensor
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import Captions
from dit.encoders.vision import VisionEncoder
from dit.runs.card import ModelCard
from dit.training.batches import DataStream
from dit.training.cost.ddp_or_fsdp import Choice
from dit.training.state import State


@dataclass(frozen=True)
class TrainingPlan:
    """What flags, data and machine leave open, decided: no value is `auto` any more."""

    run: Path
    checkpoint: Path | None  # to continue from
    steps: int
    micro_batch: int  # images that a rank computes at once
    parallel: Choice  # DDP or FSDP2, and why
    precision: str  # fp32, bf16 or fp8
    compiled: bool


@dataclass(frozen=True)
class TrainingSession:
    """What the loop needs, and where it starts."""

    plan: TrainingPlan
    card: ModelCard
    autoencoder: Autoencoder
    captions: Captions | None  # of the data, for --conditioning text
    stream: DataStream
    state: State
    network: nn.Module  # as DDP and the compiler wrap it
    loss: LossFunction  # of that network, with --align while it lasts
    late_loss: LossFunction  # without it
    start: int  # steps done before
    projector: nn.Module | None = None  # of --align, wrapped alike
    vision: VisionEncoder | None = None  # of --align, if an encoder is its teacher
    rollbacks: int = 0  # to the checkpoint at `start`

    @property
    def config(self) -> TrainConfig:
        """Settings of the run."""
        return self.card.config

    @property
    def ranks(self) -> Ranks:
        """All processes of the run."""
        return self.stream.ranks

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.plan.run

    @property
    def steps(self) -> int:
        """All steps of the run, those done before included."""
        return self.plan.steps

    @property
    def finished(self) -> bool:
        """Whether all steps were done before."""
        return self.start == self.steps

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All that is trained, as DDP and the compiler wrap it."""
        return (self.network,) if self.projector is None else (self.network, self.projector)

    def aligns(self, step: int) -> bool:
        """Return whether step `step`, counted from 1, is one of --align."""
        return self.projector is not None and step <= (self.card.align_steps or 0)

    def loss_of(self, step: int) -> LossFunction:
        """Return the loss of step `step`."""
        return self.loss if self.aligns(step) else self.late_loss

    def position(self, step: int) -> int:
        """Return the position in the data of step `step`, counted from 1; rollbacks move it."""
        return step - 1 + int(self.state.guard.offset)

    def ema_for_sampling(self) -> nn.Module:
        """Return the EMA to sample from; with FSDP2 a full copy, for which all ranks must call."""
        ema = self.state.ema.network
        if not isinstance(ema, FSDPModule):
            return ema
        # Rank 0 samples alone, while a sharded network would wait for the others at each block.
        network = build_network(self.card.network).to(self.ranks.device)
        network = network.eval().requires_grad_(False)
        tensors = {}
        for name, tensor in ema.state_dict().items():
            tensors[name] = full_tensor(tensor)
        network.load_state_dict(tensors)
        return network
