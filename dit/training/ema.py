"""Exponential moving average of weights."""

import copy

import torch
from torch import nn


class EMA:
    """A second network whose weights follow the first: w <- decay w + (1 - decay) w_trained.

    The decay warms up as (1 + step) / (10 + step), so that the average soon forgets the random start.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow `network` after optimizer step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        averages, weights = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)
