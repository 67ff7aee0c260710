"""How far an optimizer step moved the weights."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dit.distributed.parallel import full_tensor


@torch.no_grad()
def update_ratio(optimizer: torch.optim.Optimizer) -> Tensor:
    """|w_t - w_(t-1)| / |w_t| of AdamW's last step, norms over all weights, [] on their device; 0 if it was left out.

    The update, weight decay included, follows from the weights and moments that the step left, one tensor after the
    other: no second copy of the weights is kept, and no step has to be watched.
    """
    moved, weights = zip(
        *((update.norm(), weight.norm()) for update, weight in _last_step(optimizer)), strict=True
    )
    ratio = full_tensor(nn.utils.get_total_norm(moved)) / full_tensor(
        nn.utils.get_total_norm(weights)
    )
    left_out = getattr(optimizer, "found_inf", torch.zeros_like(ratio))
    return torch.where(left_out.bool(), 0, ratio)


def _last_step(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor of weights w that was trained, after what was subtracted from it."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight in optimizer.state:
                yield _update(weight, optimizer.state[weight], group), weight


def _update(weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Subtracted from w' to give w: d w' + lr u with d = lr decay, where w = (1 - d) w' - lr u (1711.05101)."""
    (beta1, beta2), lr, count = group["betas"], group["lr"], state["step"].double()
    mean = state["exp_avg"] / (1 - beta1**count)
    deviation = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt()
    step, decay = lr * mean / (deviation + group["eps"]), lr * group["weight_decay"]
    return (decay * weight + step) / (1 - decay)
