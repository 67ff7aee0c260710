"""What each step trains on: a function of seed and position in the data; ranks share it."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dit.data.sample_order import batch_indices, generator
from dit.diffusion.objective import drop_labels
from dit.diffusion.process import Process
from dit.diffusion.weighting import LossAwareSampler
from dit.distributed.device import pinned
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.errors import UserError
from dit.latents.store import Latents
from dit.utils.files import shell_quote


@dataclass(frozen=True)
class DataStream:
    """The endless stream of batches. A position in it counts batches of all ranks, from 0."""

    source: Latents
    process: Process
    seed: int
    batch_size: int  # images a step, over all ranks
    null_label: int
    label_dropout: float  # share of labels that become the null label
    flip: bool  # mirror half of the images
    ranks: Ranks
    uniforms: int = 0  # further random numbers that the loss takes, an image

    @property
    def share(self) -> slice:
        """This rank's part of a batch of all ranks."""
        size = self.batch_size // self.ranks.world
        start = self.ranks.rank * size
        return slice(start, start + size)


class Batch(NamedTuple):
    """This rank's share of a batch, as read."""

    moments: Tensor  # of the autoencoder's posterior, [B, 2C, h, w]
    labels: Tensor  # class ids [B], dropped ones null
    t: Tensor  # times [B], float64


class LossInputs(NamedTuple):
    """What a loss takes of this rank's share of a batch, on its device; times are on the CPU."""

    x0: Tensor  # latents [B, C, h, w]
    labels: Tensor  # class ids [B]
    t: Tensor  # times [B], float64
    eps: Tensor  # standard normal noise [B, C, h, w]
    weights: Tensor  # of the losses, [B]
    uniforms: Tensor  # in [0, 1), [B, U]: what else a loss draws


class BatchLost(Exception):
    """A batch could not be read, on this rank or another; all ranks raise it, with the cause."""

    def __init__(self, cause: Exception):
        super().__init__(cause)
        self.cause = cause

    def explain(self, run: Path, saved: int) -> Exception:
        """Return the cause, and how to continue from the checkpoint of step `saved`, if any."""
        cause = self.cause
        if not saved or not isinstance(cause, UserError):
            return cause
        resume = f"step {saved} is saved: continue with `--resume {shell_quote(run)}`"
        return UserError(cause.given, cause.expected, f"{cause.do}; {resume}")


class Batches:
    """The batches at some positions, each read while the step before it computes."""

    def __init__(self, stream: DataStream, positions: range):
        self.stream = stream
        self.positions = positions
        self._ranks = stream.ranks.on_cpu()  # a group for the thread that reads
        self._pending: deque[tuple[Future[Batch], Future[Batch]]] = deque()

    def __iter__(self) -> Iterator[Future[Batch]]:
        """Yield each batch once this rank has read it; its `result` waits for the other ranks.

        Raises:
            BatchLost: from `result`.
        """
        # One thread keeps one batch ahead.
        with ThreadPoolExecutor(max_workers=1) as reader:
            for position in self.positions:
                read = reader.submit(read_batch, self.stream, position)
                self._pending.append((read, reader.submit(self._agree, read)))
                if len(self._pending) > 1:
                    yield self._next()
            while self._pending:
                yield self._next()

    def _next(self) -> Future[Batch]:
        read, agreed = self._pending.popleft()
        wait([read])
        return agreed

    def _agree(self, read: Future[Batch]) -> Batch:
        """Return the batch of this rank if all ranks have theirs, so that all stop at one step."""
        error = read.exception()
        if self._ranks.max(torch.tensor(float(error is not None))):
            try:
                self._ranks.raise_together(error)
            except Exception as cause:
                raise BatchLost(cause) from cause
        return read.result()

    def wait_until_read(self) -> None:
        """Wait until no batch is being read.

        Scoring sets global flags of torch, which would change what the autoencoder computes.
        """
        wait([agreed for _, agreed in self._pending])


def read_batch(stream: DataStream, position: int) -> Batch:
    """Return this rank's share of the batch at a position.

    Every rank draws the random numbers of all ranks, so that image i gets the same on any number.
    """
    mine = stream.share
    random = generator(stream.seed, position)
    size = len(stream.source.labels)
    indices = batch_indices(position, size, stream.batch_size, stream.seed)[mine]

    # Times, labels, flips: resumed runs rely on this order of draws.
    t = stream.process.sample_time(stream.batch_size, random)[mine]
    dropped = torch.rand(stream.batch_size, generator=random) < stream.label_dropout
    flipped = torch.rand(stream.batch_size, generator=random) < 0.5
    flipped = flipped[mine] & stream.flip

    labels = torch.as_tensor(stream.source.labels[indices])
    labels = drop_labels(labels, dropped[mine], stream.null_label)
    moments = stream.source.read(indices, flipped.numpy())
    device = stream.ranks.device
    return Batch(pinned(moments, device), pinned(labels, device), t)


def draw_noise(stream: DataStream, position: int) -> Tensor:
    """Return this rank's noise for the posterior and for the process, [2, B, C, h, w]."""
    device = stream.ranks.device
    random = generator(stream.seed, position, 1, device=device)
    shape = (2, stream.batch_size, *stream.source.shape)
    noise = torch.randn(shape, generator=random, device=device)
    return noise[:, stream.share].clone()  # the other ranks' part is freed


def draw_uniforms(stream: DataStream, position: int) -> Tensor:
    """Return this rank's further random numbers, [B, U]."""
    device = stream.ranks.device
    random = generator(stream.seed, position, 2, device=device)
    shape = (stream.batch_size, stream.uniforms)
    return torch.rand(shape, generator=random, device=device)[stream.share]


def training_times(
    stream: DataStream, sampler: LossAwareSampler | None, batch: Batch, position: int
) -> tuple[Tensor, Tensor]:
    """Return times and weights of their losses, both [B]: the batch's, or a loss-aware sampler's.

    The sampler is asked when all steps before are done, since it learns from their losses.
    """
    if sampler is None:
        return batch.t, torch.ones_like(batch.t)
    # Stream 0 of this position; 1 is the noise, 2 what else a loss draws.
    random = generator(stream.seed, position, 0)
    t, weights = sampler.draw(stream.batch_size, random)
    return t[stream.share], weights[stream.share]


def draw_loss_inputs(
    stream: DataStream,
    batch: Batch,
    autoencoder: Autoencoder,
    sampler: LossAwareSampler | None,
    position: int,
) -> LossInputs:
    """Draw latents, times and noise for a batch that was read at this position."""
    device = stream.ranks.device
    # Each step draws from the posterior again, as DiT's release does.
    posterior_noise, eps = draw_noise(stream, position)
    x0 = autoencoder.draw(batch.moments.to(device, non_blocking=True), posterior_noise)
    t, weights = training_times(stream, sampler, batch, position)
    labels = batch.labels.to(device, non_blocking=True)
    return LossInputs(x0, labels, t, eps, weights, draw_uniforms(stream, position))
