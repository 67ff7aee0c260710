"""The bar of training, and the plain lines in its place where nobody watches."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from dit.runs.checkpoints import is_distance

BAR = "{percentage:3.0f}%|{bar}| {desc}"
SHOWN = {
    "loss": "loss {:.4f}",
    "img_per_s": "{:,.4g} img/s",
    "mfu": "MFU {:.1%}",
    "memory_gib": "{:.2f} GiB",
}
"""Numbers of the log, as the bar has them."""


class Bar:
    """How far training is, on stderr: a bar in a terminal; elsewhere a line, free of control characters, as often as
    there are numbers. tqdm draws it, as it does the bars of scoring, which come below it.

    Args:
        start: steps done before.
        shown: whether it is seen at all, as on one of the ranks.
    """

    def __init__(self, start: int, steps: int, shown: bool):
        self.first, self.steps, self.shown = start + 1, steps, shown
        self.began = 0.0  # when the first step was done, which compiles
        self.numbers: dict[str, str] = {}
        self.bar = tqdm(
            total=steps,
            initial=start,
            bar_format=BAR,
            dynamic_ncols=True,
            disable=not shown or not sys.stderr.isatty(),
        )

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()

    def update(self, step: int, numbers: dict[str, float]) -> None:
        """A step is done; `numbers` of the log and scores, where there are new ones."""
        if step == self.first:
            self.began = time.monotonic()
        self.numbers |= headline(numbers)
        if self.bar.disable and self.shown and numbers:
            print(self.line(step), file=sys.stderr, flush=True)
        self.bar.set_description_str(self.line(step), refresh=False)
        self.bar.update()

    def line(self, step: int) -> str:
        """Where training is, in words."""
        return "  ".join(
            [f"step {step:,}/{self.steps:,}", *self.numbers.values(), f"ETA {self.left(step)}"]
        )

    def left(self, step: int) -> str:
        """Time until the last step at the speed of this start so far, pictures and checkpoints included."""
        if step == self.first:
            return "–"
        per_step = (time.monotonic() - self.began) / (step - self.first)
        return tqdm.format_interval((self.steps - step) * per_step)


def headline(numbers: dict[str, float]) -> dict[str, str]:
    """Those of the numbers that the bar shows, in words."""
    distances = {
        name: f"{name} {value:.4g}" for name, value in numbers.items() if is_distance(name)
    }
    return {
        **{name: form.format(numbers[name]) for name, form in SHOWN.items() if name in numbers},
        **distances,
    }
