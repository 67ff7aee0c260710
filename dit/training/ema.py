"""Moving averages of weights: the EMA that sampling reads, and power-function EMAs.

`dit ema` combines snapshots of the latter into an average of any length afterwards.
"""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dit.config import TrainConfig
from dit.distributed.parallel import gather_state_dict
from dit.distributed.ranks import Ranks
from dit.runs.card import ModelCard
from dit.runs.ema_profiles import beta, gamma_of
from dit.runs.posthoc_ema import write_snapshot

SNAPSHOTS = 32  # of a training, unless --ema-every says otherwise


class Average:
    """A copy of a network whose weights follow it: w <- decay w + (1 - decay) w_trained."""

    def __init__(self, network: nn.Module):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """Return the decay of optimizer step number `step`, counted from 1."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow `network` after optimizer step number `step`, counted from 1."""
        # Tensors that are never trained equal the network's from the start.
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        trained = [pair for pair in pairs if pair[1].requires_grad]
        averages, weights = zip(*trained, strict=True)
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(step))


class EMA(Average):
    """The exponential moving average, with a smaller decay at first, to forget random weights."""

    def __init__(self, network: nn.Module, decay: float):
        super().__init__(network)
        self.decay = decay

    def decay_at(self, step: int) -> float:
        # As TensorFlow's ExponentialMovingAverage with num_updates: 2/11 at first.
        return min(self.decay, (1 + step) / (10 + step))


class PowerEMA(Average):
    """An average whose length is a constant share of the steps done (2312.02696, section 3.1).

    Args:
        length: that share, sigma_rel.
    """

    def __init__(self, network: nn.Module, length: float):
        super().__init__(network)
        self.length = length
        self.gamma = gamma_of(length)

    def decay_at(self, step: int) -> float:
        return beta(self.gamma, step)


def snapshot_every(config: TrainConfig, steps: int) -> int:
    """Return the steps between snapshots of the power EMAs; 0 without --ema-lengths."""
    if not config.ema_lengths:
        return 0
    return config.ema_every or -(-steps // SNAPSHOTS)


def save_ema_snapshots(
    run: Path, step: int, averages: Sequence[PowerEMA], card: ModelCard, ranks: Ranks
) -> None:
    """Write every power EMA into RUN/ema; all ranks call it."""
    for average in averages:
        weights = gather_state_dict(average.network, ranks)
        ranks.on_main(partial(write_snapshot, run, weights, card, average.length, step))
