"""Progress of training on stderr: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import AbstractContextManager

from tqdm import tqdm

from dit.runs.checkpoint_files import is_distance

BAR = "{percentage:3.0f}%|{bar}| {desc}"
FORMATS = {
    "loss": "loss {:.4f}",
    "psnr": "PSNR {:.1f} dB",
    "img_per_s": "{:,.4g} img/s",
    "mfu": "MFU {:.1%}",
    "memory_gib": "{:.2f} GiB",
}
"""Formats of the log's numbers in the bar."""


class Bar(AbstractContextManager):
    """A bar in a terminal; elsewhere a line without control characters for every line of the log.

    tqdm draws it, so that the bars of scoring appear below it.

    Args:
        start: steps done before.
        shown: whether it is visible: on one rank only.
    """

    def __init__(self, start: int, steps: int, shown: bool):
        self.first = start + 1
        self.steps = steps
        self.shown = shown
        self.began = 0.0
        self.numbers: dict[str, str] = {}
        self.bar = tqdm(
            total=steps,
            initial=start,
            bar_format=BAR,
            dynamic_ncols=True,
            disable=not shown or not sys.stderr.isatty(),
        )

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, step: int, numbers: dict[str, float]) -> None:
        """Advance by one step; `numbers` are new ones of the log and new scores."""
        if step == self.first:
            # The first step compiles the network: the speed is that of the steps after it.
            self.began = time.monotonic()
        self.numbers |= headline(numbers)
        line = self.line(step)
        if self.bar.disable and self.shown and numbers:
            print(line, file=sys.stderr, flush=True)
        # drawn once, by `update`, and not more often than tqdm allows
        self.bar.set_description_str(line, refresh=False)
        self.bar.update()

    def line(self, step: int) -> str:
        """Return step, numbers and remaining time in words."""
        return "  ".join(
            [f"step {step:,}/{self.steps:,}", *self.numbers.values(), f"ETA {self.left(step)}"]
        )

    def left(self, step: int) -> str:
        """Return the time until the last step, previews and checkpoints included."""
        if step == self.first:
            return "–"
        per_step = (time.monotonic() - self.began) / (step - self.first)
        return tqdm.format_interval((self.steps - step) * per_step)


def headline(numbers: dict[str, float]) -> dict[str, str]:
    """Return the numbers that the bar shows, in words."""
    shown = {}
    for name, form in FORMATS.items():
        if name in numbers:
            shown[name] = form.format(numbers[name])
    for name, value in numbers.items():
        if is_distance(name):
            shown[name] = f"{name} {value:.4g}"
    return shown
