"""The optimizer: how it is built, and its guarded update."""

import torch
from torch import Tensor, nn

from dit.config import TrainConfig
from dit.training.muon import MuonAdamW, orthogonalise_flops, split_parameters


def build_optimizer(
    network: nn.Module, config: TrainConfig, projector: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return AdamW (1711.05101) of all weights that are trained, or Muon of those of the blocks."""
    betas = (0.9, config.beta2)
    more = list(projector.parameters()) if projector else []
    if config.optimizer == "muon":
        matrices, others = split_parameters(network)
        return MuonAdamW(
            matrices, others + more, config.lr, betas, config.weight_decay, config.precision
        )
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    trained += more
    return torch.optim.AdamW(
        trained, config.lr, betas, weight_decay=config.weight_decay, fused=True
    )


def optimizer_flops(network: nn.Module, config: TrainConfig) -> float:
    """Return the FLOPs of matrix products in a step of the optimizer, on every rank: Muon's."""
    return orthogonalise_flops(network) if config.optimizer == "muon" else 0.0


def update_weights(optimizer: torch.optim.Optimizer, lr: float, skipped: Tensor) -> None:
    """Take a step at this learning rate unless `skipped` is 1, float32 []; free the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = lr

    # Fused optimizers read this attribute, by which torch.amp skips steps without waiting.
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def create_moments(optimizer: torch.optim.Optimizer) -> None:
    """Create the tensors of an optimizer, which it makes in its first step, to load into them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
