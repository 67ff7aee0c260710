"""One optimizer step."""

import torch
from torch import Tensor, nn

from dit.data.order import generator
from dit.distributed.device import autocast
from dit.distributed.parallel import full_tensor, sync_gradients
from dit.training.batches import Batch, position, share, training_times
from dit.training.lr_schedule import learning_rate
from dit.training.session import TrainingSession


def train_step(session: TrainingSession, batch: Batch, step: int) -> None:
    """Noise, loss, gradients over all micro-batches, one optimizer step, averages. `step` counts from 1.

    A step with numbers that are not finite, or that leap, leaves weights and optimizer as they were.
    """
    config, state, device = session.config, session.state, session.ranks.device
    posterior_noise, eps = noise(session, position(session, step - 1))
    x0 = session.autoencoder.draw(batch.moments.to(device, non_blocking=True), posterior_noise)
    t, weights = training_times(
        session, batch, position(session, step - 1)
    )  # t is looked up on CPU
    parts = [
        v.chunk(config.grad_accum)
        for v in (x0, batch.labels.to(device, non_blocking=True), t, eps, weights)
    ]
    losses = []  # of each micro-batch, unweighted
    logged = torch.zeros(len(state.window.names) - 1, device=device)
    for i, (*micro, weight) in enumerate(zip(*parts, strict=True)):
        with (
            sync_gradients(session.network, i == config.grad_accum - 1),
            autocast(device, config.precision),
        ):
            plain = session.loss(*micro)
        loss = plain.weighted(weight)
        (loss.total / config.grad_accum).backward()
        logged += (
            torch.stack([loss.total.detach(), *(v.mean() for v in loss.terms.values())])
            / config.grad_accum
        )
        losses.append(plain.each.detach())
    norm = full_tensor(
        nn.utils.clip_grad_norm_(state.network.parameters(), config.clip or float("inf"))
    )
    left_out = state.guard.judge(step, session.ranks.mean(logged[0]), norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, step - 1, session.steps)
    state.optimizer.found_inf = left_out  # type: ignore[attr-defined]  # as torch.amp tells fused optimizers
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    for average in state.averages:
        average.update(state.network, step)
    state.window.add((logged[0], norm, *logged[1:]), left_out)
    state.window.add_losses(t / session.process.end, torch.cat(losses), left_out)
    if state.times:
        seen = torch.cat(losses).masked_fill(
            left_out.bool(), torch.inf
        )  # nothing is remembered of what is left out
        state.times.update(*session.ranks.gather(torch.stack([t.to(device), seen], dim=1)).cpu().T)


def noise(session: TrainingSession, step: int) -> Tensor:
    """This rank's share of a step's noise, counted from 0: for the posterior and for the process, [2, B, C, h, w].

    Every rank draws for all of them, which is quick, so that image i of a batch meets the same noise on any number.
    """
    device = session.ranks.device
    random = generator(session.config.seed, step, 1, device=device)
    shape = (2, session.config.global_batch_size, *session.source.shape)
    return torch.randn(shape, generator=random, device=device)[
        :, share(session)
    ].clone()  # so that the others' is freed
