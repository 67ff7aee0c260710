"""The full path of `make quickstart`: train, sample, evaluate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quickstart_generates_recognisable_digits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quickstart", "--out", tmp_path / "run"], cwd=ROOT
    )
    assert done.returncode == 0

    report = json.loads((tmp_path / "run" / "evaluation" / "report.json").read_text())
    assert report["digits_recognised"]["found"]["accuracy"] >= 0.97
    assert report["scores"]["fd"]["value"] < 3 * report["floor"]["fd"]["value"]

    for name in (
        "grid.png",
        "loss.png",
        "samples/strip.png",
        "samples/strip.gif",
        "evaluation/report.html",
    ):
        assert (tmp_path / "run" / name).stat().st_size > 1000, name
