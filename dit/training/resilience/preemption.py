"""Stop a run on a signal, so that it can be resumed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch
import torch.distributed as dist
from torch import nn

from dit.distributed.ranks import Ranks


class Preempted(Exception):
    """A signal interrupted work that training can do without, so that it saves and ends."""


class Stop:
    """Whether SIGTERM or SIGINT asked training to save and end; a second SIGINT ends it at once."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.asked = False
        self._vote: tuple[torch.Tensor, dist.Work] | None = None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.asked = True
        # The next Ctrl-C raises KeyboardInterrupt at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def now(self) -> bool:
        """Whether to stop after this step, the same on all ranks.

        They vote, and follow the vote of the step before, for which none has to wait.
        """
        if self.ranks.world == 1:
            return self.asked
        vote = torch.tensor(float(self.asked))  # on the CPU, so that no GPU is waited for
        stop = self.finish_vote()
        self._vote = vote, dist.all_reduce(vote, async_op=True)
        return stop

    def finish_vote(self) -> bool:
        """Return the outcome of the vote under way; False if there is none."""
        if self._vote is None:
            return False
        votes, work = self._vote
        work.wait()
        return bool(votes)

    def on_batch(self) -> None:
        """Raise `Preempted` on all ranks if any got a signal; all ranks call it, as often."""
        if self.ranks.max(torch.tensor(float(self.asked))):
            raise Preempted

    @contextmanager
    def interrupting(self, network: nn.Module) -> Iterator[None]:
        """End the block before the next call of a network once this rank got a signal."""

        def check(*_: object) -> None:
            if self.asked:
                raise Preempted

        # A grid takes dozens of calls, so that a signal ends it soon.
        hook = network.register_forward_pre_hook(check)
        try:
            with suppress(Preempted):
                yield
        finally:
            hook.remove()


@contextmanager
def stop_on_signals(ranks: Ranks) -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a `Stop` inside the block."""
    stop = Stop(ranks)
    # Python lets the main thread alone handle signals
    if threading.current_thread() is not threading.main_thread():
        yield stop
        stop.finish_vote()
        return
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, stop.ask)

    # A Ctrl-C that a library swallowed while training started; the handler of `cli` remembers it.
    stop.asked |= getattr(before[signal.SIGINT], "asked", False)
    try:
        yield stop
        stop.finish_vote()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
