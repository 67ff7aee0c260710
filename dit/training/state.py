"""What training changes, and what a checkpoint therefore holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit.config import TrainConfig
from dit.diffusion.process import Process
from dit.diffusion.weighting import LossAwareSampler
from dit.training.ema import EMA, Average, PowerEMA
from dit.training.optimizer import build_optimizer, create_moments
from dit.training.running_means import RunningMeans
from dit.training.spike_guard import SpikeGuard


@dataclass(frozen=True)
class State:
    """All that changes in training. All else derives from the step number."""

    network: nn.Module
    projector: nn.Module | None  # of --align, trained beside the network
    optimizer: torch.optim.Optimizer
    ema: EMA
    means: RunningMeans
    guard: SpikeGuard
    time_sampler: LossAwareSampler | None  # of --time-sampling loss-aware
    power_emas: tuple[PowerEMA, ...]  # of --ema-lengths

    @property
    def averages(self) -> tuple[Average, ...]:
        """All networks that follow the trained one."""
        return self.ema, *self.power_emas

    @property
    def trained(self) -> dict[str, nn.Module]:
        """All networks that are trained, by their prefix in checkpoints."""
        return {
            "network": self.network,
            **({"projector": self.projector} if self.projector is not None else {}),
        }

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All weights that are trained, and fixed tables."""
        return [p for network in self.trained.values() for p in network.parameters()]

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name in checkpoints; loading into them restores the state."""
        if not self.optimizer.state:
            create_moments(self.optimizer)
        # Prefixes are those of checkpoints, whatever attributes are called today.
        networks = {**self.trained, "ema": self.ema.network}
        networks |= {f"ema-{ema.length:g}": ema.network for ema in self.power_emas}

        tensors = {
            f"{prefix}.{name}": tensor
            for prefix, network in networks.items()
            for name, tensor in network.state_dict().items()
        }
        names = dict(self.network.named_parameters())
        if self.projector is not None:
            names |= dict(self.projector.named_parameters("projector"))
        for name, parameter in names.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        if self.time_sampler:
            tensors["times.history"] = self.time_sampler.history
            tensors["times.counts"] = self.time_sampler.counts
        tensors |= {f"guard.{name}": value for name, value in self.guard.tensors().items()}
        tensors["window"] = self.means.sums
        tensors["window.by_time"] = self.means.by_time
        return tensors


def new_state(
    network: nn.Module,
    projector: nn.Module | None,
    ema: EMA,
    power_emas: tuple[PowerEMA, ...],
    config: TrainConfig,
    process: Process,
    terms: Sequence[str],
    device: torch.device,
) -> State:
    """Return the state of a training that has done no step.

    Args:
        terms: names of the parts of the loss, for the log.
    """
    loss_aware = config.time_sampling == "loss-aware"
    return State(
        network,
        projector,
        build_optimizer(network, config, projector),
        ema,
        RunningMeans(("loss", "grad_norm", *terms), device, process.end),
        SpikeGuard(config.spike, device),
        LossAwareSampler(int(process.end)) if loss_aware else None,
        power_emas,
    )
