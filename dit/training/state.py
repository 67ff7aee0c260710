"""What training changes, and what a checkpoint therefore holds."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit.diffusion.weighting import LossAwareSampler
from dit.training.ema import EMA, Average, PowerEMA
from dit.training.running_means import RunningMeans
from dit.training.spike_guard import SpikeGuard


@dataclass(frozen=True)
class State:
    """All that changes in training. Its tensors are a checkpoint; everything else derives from the step number."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    window: RunningMeans
    guard: SpikeGuard
    times: LossAwareSampler | None = None  # of --time-sampling loss-aware
    profiles: tuple[PowerEMA, ...] = ()  # of --ema-lengths

    @property
    def averages(self) -> tuple[Average, ...]:
        """All networks that follow the trained one."""
        return self.ema, *self.profiles

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, in place: loading into them restores the state."""
        if not self.optimizer.state:
            _create_moments(self.optimizer)
        names: dict[Tensor, str] = {
            parameter: name for name, parameter in self.network.named_parameters()
        }
        moments = {
            f"optimizer.{names[parameter]}.{key}": value
            for parameter, values in self.optimizer.state.items()
            for key, value in values.items()
        }
        networks = {
            "network": self.network,
            "ema": self.ema.network,
            **{f"ema-{profile.length:g}": profile.network for profile in self.profiles},
        }
        weights = {
            f"{k}.{name}": v for k, net in networks.items() for name, v in net.state_dict().items()
        }
        drawn = (
            {"times.history": self.times.history, "times.counts": self.times.counts}
            if self.times
            else {}
        )
        guard = {f"guard.{name}": value for name, value in self.guard.tensors().items()}
        return {
            **weights,
            **moments,
            **drawn,
            **guard,
            "window": self.window.sums,
            "window.by_time": self.window.by_time,
        }


def _create_moments(optimizer: torch.optim.Optimizer) -> None:
    """An optimizer makes its state in its first step: take one, before the checkpoint is loaded over it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
