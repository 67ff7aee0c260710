"""The progress bar, and the lines where there is no terminal."""

import io

import pytest

from dit.training.monitoring import progress
from dit.training.monitoring.progress import Bar

NUMBERS = {"loss": 0.12345, "grad_norm": 1.0, "img_per_s": 212.3, "mfu": 0.412, "memory_gib": 1.25}


class Screen(io.StringIO):
    """A terminal or a file."""

    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool, main: bool = True) -> str:
    """Return the output of steps 17 to 20, a second each: step 18 is logged, step 20 scored."""
    screen, clock = Screen(terminal), iter(range(100))
    monkeypatch.setattr(progress.sys, "stderr", screen)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with Bar(16, 20, main) as bar:
        for step, numbers in ((17, {}), (18, NUMBERS), (19, {}), (20, {"FD(x)": 3.0})):
            bar.update(step, numbers)
    return screen.getvalue()


def test_a_file_gets_a_line_for_each_line_of_the_log(monkeypatch):
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert lines == [
        "step 18/20  loss 0.1235  212.3 img/s  MFU 41.2%  1.25 GiB  ETA 00:02",
        "step 20/20  loss 0.1235  212.3 img/s  MFU 41.2%  1.25 GiB  FD(x) 3  ETA 00:00",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = shown(monkeypatch, terminal=True)
    assert text.count("\r") > 1
    assert "100%|" in text
    assert "MFU 41.2%" in text
    assert text.count("\n") == 1  # at its end


@pytest.mark.parametrize("terminal", [True, False])
def test_other_ranks_are_silent(terminal, monkeypatch):
    assert shown(monkeypatch, terminal, main=False) == ""
