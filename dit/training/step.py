"""One optimizer step."""

import torch
from torch import nn

from dit.diffusion.objective import LossFunction
from dit.distributed.device import autocast
from dit.distributed.parallel import full_tensor, sync_gradients
from dit.distributed.ranks import Ranks
from dit.training.batches import LossInputs
from dit.training.optimizer import update_weights
from dit.training.state import State


def train_step(
    state: State,
    inputs: LossInputs,
    networks: tuple[nn.Module, ...],
    loss_function: LossFunction,
    *,
    step: int,
    lr: float,
    grad_accum: int,
    clip: float,
    precision: str,
    ranks: Ranks,
) -> None:
    """Take optimizer step number `step`, counted from 1, on this rank's share of a batch.

    A step whose loss or gradient is not finite, or spikes, leaves weights and optimizer unchanged;
    the averages still move towards the weights.

    Args:
        networks: those of the state as DDP and the compiler wrap them; `loss_function` calls them.
        grad_accum: micro-batches whose gradients are averaged.
        clip: the largest norm of the gradient; 0 does not clip.
    """
    losses = []
    logged = torch.zeros(len(state.means.names) - 1, device=ranks.device)
    micro_batches = zip(*(part.chunk(grad_accum) for part in inputs), strict=True)
    for number, (x0, labels, t, eps, weights, uniforms) in enumerate(micro_batches, start=1):
        # Ranks average gradients in the last micro-batch only; DDP decides it in the forward pass.
        with sync_gradients(networks, number == grad_accum), autocast(ranks.device, precision):
            unweighted = loss_function(x0, labels, t, eps, uniforms)
        loss = unweighted.weighted(weights)
        (loss.mean / grad_accum).backward()

        losses.append(unweighted.each.detach())
        terms = [loss.mean.detach(), *(term.mean() for term in loss.terms.values())]
        logged += torch.stack(terms) / grad_accum

    norm = full_tensor(nn.utils.clip_grad_norm_(state.parameters, clip or float("inf")))

    # Ranks skip the same steps, because they compare the same numbers. Nothing waits for the GPU.
    skipped = state.guard.update(step, ranks.mean(logged[0]), norm)
    update_weights(state.optimizer, lr, skipped)

    for average in state.averages:
        average.update(state.network, step)

    each = torch.cat(losses)
    state.means.add((logged[0], norm, *logged[1:]), skipped)
    state.means.add_losses(inputs.t, each, skipped)
    if state.time_sampler:
        # The sampler ignores infinite losses, so that it learns nothing from a skipped step.
        rows = torch.stack([inputs.t.to(each), each.masked_fill(skipped.bool(), torch.inf)], dim=1)
        state.time_sampler.update(*ranks.gather(rows).cpu().T)
