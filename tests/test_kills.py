"""Two ranks, killed at any moment and started again, end where an undisturbed run ends, bit for bit."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import forked
from benchmarks.equality import RUN, disturb, everything, killed, parts, pruning, sealing, train_small, writing


def assert_same(whole: Path, other: Path) -> None:
    assert {name.split(":")[1].split(".")[0] for name in everything(whole)} >= {"network", "ema", "optimizer", "guard",
                                                                               "window"}
    assert [part for part, same in parts(whole, other).items() if not same] == []
    left = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, other)]
    assert left[0] == left[1], "kills leave nothing behind"


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_five_kills_leave_no_trace(parallel, tmp_path):
    config = dataclasses.replace(RUN, steps=150, parallel=parallel, out=tmp_path / "run")
    chosen = [(writing, 0.0), (sealing, 0.0), (pruning, 0.0), (None, 2.5), (writing, 0.05)]
    assert disturb(config, chosen) >= 4
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    forked.run(2, train_small, whole)
    assert_same(whole.out, config.out)


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(tmp_path):
    found = killed(tmp_path, (2, "ddp"), 30)
    assert found["met_at_work"] >= 25
    assert_same(tmp_path / "whole", tmp_path / "run")
