"""What the benchmark of stability reads from a log."""

import json
import math

import pytest

from benchmarks.stability import read
from dit.training.resilience.rollback import describe
from dit.training.spike_guard import SkippedStep


def test_skipped_steps_are_counted_and_the_end_averaged(tmp_path):
    reasons = [describe(SkippedStep(12, math.nan, 1.0)), describe(SkippedStep(15, 3.0, 40.0))]
    lines = [
        {"step": 10, "loss": 2.0, "grad_norm": 1.0},
        {"step": 12, "event": "skipped", "reason": reasons[0]},
        {"step": 15, "event": "skipped", "reason": reasons[1]},
        {"step": 16, "event": "rolled back", "reason": "3 in a row"},
        {"step": 20, "loss": 1.0, "grad_norm": 7.0},
        {"step": 100, "loss": 0.5, "grad_norm": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(tmp_path, 100)
    assert (found["steps"], found["skipped"], found["not_finite"]) == (100, 2, 1)
    assert (found["first"]["step"], found["last"]["step"]) == (12, 15)
    assert found["largest_gradient_norm"] == 7
    assert found["loss_at_the_end"] == pytest.approx(0.5)
