"""Two ranks as threads of one process, for tests of what ranks exchange."""

import dataclasses
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dit.distributed.ranks import Ranks


@dataclasses.dataclass(frozen=True)
class ThreadRank(Ranks):
    """One of two ranks; they meet and exchange pickles, as processes do."""

    box: dict = dataclasses.field(default_factory=dict)
    meeting: threading.Barrier = dataclasses.field(
        default_factory=lambda: threading.Barrier(2, timeout=30)
    )

    def barrier(self) -> None:
        self.meeting.wait()

    def broadcast(self, value: Any) -> Any:
        return self.gather_objects(value)[0]

    def gather_objects(self, value: Any) -> list[Any]:
        self.box[self.rank] = pickle.dumps(value)
        self.meeting.wait()
        both = [pickle.loads(self.box[0]), pickle.loads(self.box[1])]
        self.meeting.wait()
        return both


def errors_on_two_ranks(work: Callable[[Ranks], object]) -> list[str]:
    """The text of what `work` raised on each rank, "" for nothing."""
    first = ThreadRank(0, 2)

    def attempt(ranks: Ranks) -> str:
        try:
            work(ranks)
        except Exception as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(attempt, (first, dataclasses.replace(first, rank=1))))
