"""What each step trains on: a function of (seed, step), whatever the number of ranks."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import torch
from torch import Tensor

from dit.data.order import batch_indices, generator
from dit.diffusion.objective import drop_labels
from dit.distributed.device import pinned
from dit.training.session import TrainingSession


class Batch(NamedTuple):
    """This rank's share of a step: stored moments [B, 2C, h, w], class ids [B], dropped ones null, and times [B]."""

    moments: Tensor
    labels: Tensor
    t: Tensor


class Batches:
    """The batch of each step from the start, read while the step before it computes."""

    def __init__(self, session: TrainingSession):
        self.session = session
        self.coming: deque[Future[Batch]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        session, coming = self.session, self.coming
        with ThreadPoolExecutor(max_workers=1) as ahead:
            coming.append(ahead.submit(draw_batch, session, session.start))
            for step in range(session.start, session.steps):
                if step + 1 < session.steps:
                    coming.append(ahead.submit(draw_batch, session, step + 1))
                yield coming.popleft().result()

    def settle(self) -> None:
        """Wait until nothing is being read, so that flags of the whole process may be set: the encoder heeds them."""
        wait(self.coming)


def training_times(session: TrainingSession, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """Times of this rank's share of a step, counted from 0, and the weights of their losses, both [B].

    Those of the batch, with weights 1; or drawn where the loss is large, which is known only once all steps before are
    done. Every rank draws for all of them.
    """
    if session.state.times is None:
        return batch.t, torch.ones_like(batch.t)
    drawn = session.state.times.draw(
        session.config.global_batch_size, generator(session.config.seed, step, 0)
    )
    t, weights = (v[share(session)] for v in drawn)
    return t, weights


def position(session: TrainingSession, step: int) -> int:
    """Which batch of the data's endless stream a step takes: its own, but after a run went back to a checkpoint."""
    return step + int(session.state.guard.offset)


def share(session: TrainingSession) -> slice:
    """This rank's part of a batch of all ranks."""
    size = session.config.global_batch_size // session.ranks.world
    return slice(session.ranks.rank * size, (session.ranks.rank + 1) * size)


def draw_batch(session: TrainingSession, step: int) -> Batch:
    """This rank's share of the batch of a step, counted from 0."""
    step = position(session, step)
    config, source, n = session.config, session.source, session.config.global_batch_size
    mine = share(session)
    random = generator(config.seed, step)
    indices = batch_indices(step, len(source.labels), n, config.seed)[mine]
    t = session.process.sample_time(n, random)[mine]
    drop = (torch.rand(n, generator=random) < config.label_dropout)[
        mine
    ] | session.card.unconditional
    flip = (torch.rand(n, generator=random) < 0.5)[mine] & (
        source.flips and config.flip is not False
    )
    labels = drop_labels(
        torch.as_tensor(source.labels[indices]), drop, session.card.network.num_classes
    )
    device = session.ranks.device
    return Batch(pinned(source.read(indices, flip.numpy()), device), pinned(labels, device), t)
