"""Stopping a run so that it can go on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from dit.hardware import Ranks


class Stop:
    """Whether SIGTERM or SIGINT asked training to save and end; a second SIGINT ends it at once."""

    def __init__(self, ranks: Ranks):
        self.ranks, self.asked = ranks, False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def now(self, step: int) -> bool:
        """Whether to stop after `step`, the same answer on all ranks, which confer every ten steps."""
        if self.ranks.world == 1:
            return self.asked
        return step % 10 == 0 and bool(self.ranks.total(torch.tensor(float(self.asked), device=self.ranks.device)))


@contextmanager
def stop_on_signals(ranks: Ranks) -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a `Stop` inside the block."""
    stop = Stop(ranks)
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
