"""The code of docs/python.md and of the notebooks runs, with tiny networks and few steps."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import write_run
from helpers.runs import TINIEST

from dit.evaluation.metrics import compute as metrics
from dit.models.sizes import SIZES

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
MODULE = re.compile(r"# (\w+\.py)\n")
QUICK = {
    "STEPS = 600": "STEPS = 2",
    "STEPS = 25": "STEPS = 2",
    "IMAGES = 512": "IMAGES = 24",
    "SAMPLES = 128": "SAMPLES = 6",
    "steps=560": "steps=2, sample_every=0",
    "steps=300": "steps=2",
    "steps=310": "steps=3",
    'out="runs/mine"': 'out="runs/mine", vae="identity", image_size=8, sample_every=0',
    "num_inference_steps=25": "num_inference_steps=2",
}
HUB = "owner/name"  # in blocks that need the hub


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with a run, as the current one."""
    monkeypatch.setitem(SIZES, "Ti", TINIEST)
    monkeypatch.setattr(metrics, "KID_SUBSETS", 5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_run(tmp_path / "runs" / "digits")
    yield tmp_path
    for name in ("mynet", "mydata"):
        sys.modules.pop(name, None)


def run_code(blocks):
    names = {"__name__": "__main__"}
    for block in blocks:
        for text, quick in QUICK.items():
            block = block.replace(text, quick)
        exec(compile(block, "example", "exec"), names)


def test_the_page_on_python(place):
    blocks = BLOCK.findall((ROOT / "docs" / "python.md").read_text())
    assert len(blocks) > 8
    code = []
    for block in blocks:
        if module := MODULE.match(block):
            (place / module[1]).write_text(block)
        elif HUB not in block:
            code.append(block)
    run_code(code)
    assert (place / "seven.png").is_file()


@pytest.mark.parametrize(
    "name", ["sample_and_edit", pytest.param("train_on_your_data", marks=pytest.mark.slow)]
)
def test_notebooks(place, name):
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # what they print is not kept
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    run_code(["".join(cell["source"]) for cell in cells])
