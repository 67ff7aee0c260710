"""Stopping a run so that it can go on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch
import torch.distributed as dist
from torch import nn

from dit.distributed.ranks import Ranks


class Left(Exception):
    """Work that can be left was left, for training should save and end."""


class Stop:
    """Whether SIGTERM or SIGINT asked training to save and end; a second SIGINT ends it at once."""

    def __init__(self, ranks: Ranks):
        self.ranks, self.asked = ranks, False
        self._voting: tuple[torch.Tensor, dist.Work] | None = None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def now(self) -> bool:
        """Whether to stop after this step, the same answer on all ranks: they vote, and heed the vote of the step
        before, for which nobody has to wait."""
        if self.ranks.world == 1:
            return self.asked
        vote = torch.tensor(float(self.asked))  # on the CPU, so that no GPU is waited for either
        counted, self._voting = self._counted(), (vote, dist.all_reduce(vote, async_op=True))
        return counted

    def heed(self) -> None:
        """In the midst of work that can be left: leave it where a signal has come, on all ranks; all of them must ask.

        Raises:
            Left: on all ranks alike.
        """
        if self.ranks.maximum(torch.tensor(float(self.asked))):
            raise Left

    @contextmanager
    def leaving(self, network: nn.Module) -> Iterator[None]:
        """Work of this rank alone, which a signal to it ends before the next call of a network."""

        def look(*_: object) -> None:
            if self.asked:
                raise Left

        hook = network.register_forward_pre_hook(look)
        try:
            with suppress(Left):
                yield
        finally:
            hook.remove()

    def _counted(self) -> bool:
        """The outcome of the vote under way, if there is one."""
        if self._voting is None:
            return False
        votes, work = self._voting
        work.wait()
        return bool(votes)


@contextmanager
def stop_on_signals(ranks: Ranks) -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a `Stop` inside the block."""
    stop = Stop(ranks)
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    stop.asked |= getattr(
        before[signal.SIGINT], "asked", False
    )  # while training started, and got lost there
    try:
        yield stop
        stop._counted()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
