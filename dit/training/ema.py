"""Moving averages of weights: the one that sampling reads, and those that any length is made of afterwards."""

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
    """A second network whose weights follow the first: w <- kept w + (1 - kept) w_trained."""

    def __init__(self, network: nn.Module):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def kept(self, step: int) -> float:
        """The share of itself that it keeps in optimizer step number `step`, counted from 1."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow `network` after optimizer step number `step`, counted from 1."""
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        averages, weights = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
        torch._foreach_lerp_(averages, weights, 1 - self.kept(step))


class EMA(Average):
    """Exponential: it keeps `decay`, or (1 + step) / (10 + step) where that is less, to soon forget the start."""

    def __init__(self, network: nn.Module, decay: float):
        super().__init__(network)
        self.decay = decay

    def kept(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))


class PowerEMA(Average):
    """A power function of the step, whose width is always the same share of the steps done (2312.02696, section 3.1).

    Args:
        length: that share, sigma_rel.
    """

    def __init__(self, network: nn.Module, length: float):
        super().__init__(network)
        self.length, self.gamma = length, gamma_of(length)

    def kept(self, step: int) -> float:
        return beta(self.gamma, step)


def snapshot_every(config: TrainConfig, steps: int) -> int:
    """Steps between snapshots of the profiles; 0 where none are tracked."""
    return (config.ema_every or -(-steps // SNAPSHOTS)) if config.ema_lengths else 0


def save_snapshots(
    run: Path, step: int, profiles: Sequence[PowerEMA], card: ModelCard, ranks: Ranks
) -> None:
    """Write every profile into RUN/ema; on all ranks.

    Raises:
        UserError: the disk is full or read-only.
    """
    for profile in profiles:
        weights = gather_state_dict(profile.network, ranks)
        ranks.on_main(partial(write_snapshot, run, weights, card, profile.length, step))
