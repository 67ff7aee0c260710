"""The size of an optimizer step, relative to the weights."""

from typing import Any

import torch
from torch import Tensor, nn

from dit.distributed.device import widest_float
from dit.distributed.parallel import full_tensor
from dit.training.muon import MuonAdamW


@torch.no_grad()
def update_ratio(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return |w_t - w_(t-1)| / |w_t| of the last step, [], over all weights; 0 if it was skipped.

    AdamW's update, weight decay included, is recomputed from the weights and moments after the
    step, one tensor at a time: no second copy of the weights is needed. Muon notes its own.
    """
    updates = []
    weights = []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight in optimizer.state:
                updates.append(_update_norm(optimizer, weight, group))
                weights.append(weight.norm())
    norm = full_tensor(nn.utils.get_total_norm(weights))
    ratio = full_tensor(nn.utils.get_total_norm(updates)) / norm
    # fused AdamW does nothing where `found_inf` is set: SpikeGuard skips steps in this way
    skipped = getattr(optimizer, "found_inf", torch.zeros_like(ratio))
    return torch.where(skipped.bool(), 0, ratio)


def _update_norm(optimizer: torch.optim.Optimizer, weight: Tensor, group: dict[str, Any]) -> Tensor:
    if isinstance(optimizer, MuonAdamW) and weight in optimizer.updates:
        return optimizer.updates[weight]
    return _update(weight, optimizer.state[weight], group).norm()


def _update(weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Return w' - w, where AdamW (1711.05101, algorithm 2) made w of w'.

    With d = lr decay, w = (1 - d) w' - lr u, and so w' - w = (d w + lr u) / (1 - d).
    """
    beta1, beta2 = group["betas"]
    lr = group["lr"]
    count = state["step"].to(widest_float(weight.device))
    mean = state["exp_avg"] / (1 - beta1**count)
    deviation = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt()
    step = lr * mean / (deviation + group["eps"])
    decay = lr * group["weight_decay"]
    return (decay * weight + step) / (1 - decay)
