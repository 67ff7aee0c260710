"""Imports go down only, and importing the package stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import forked
from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))
import measure_house  # noqa: E402


def imported(file: Path) -> set[str]:
    """Modules of the package that a file imports, as `dit.a.b`."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    for node in (n for n in nodes if isinstance(n, ast.ImportFrom)):
        names |= (
            {f"dit.{a.name}" for a in node.names} if node.module == "dit" else {node.module or ""}
        )
    return {name for name in names if name.startswith("dit.")}


def test_rooms_import_each_other_in_no_circle():
    files = sorted((ROOT / "dit").rglob("*.py"))
    modules = measure_house.modules_of(files)
    imports = {
        measure_house.module_name(file): measure_house.our_imports(file, modules) for file in files
    }
    assert len(measure_house.floors(imports)) > 1  # raises where there is a circle


def test_networks_know_nothing_of_the_package_but_errors():
    for file in (ROOT / "dit" / "models").glob("*.py"):
        assert {name.split(".")[1] for name in imported(file)} <= {"models", "errors"}


def test_ranks_are_known_only_above():
    below = [
        f
        for part in ("models", "diffusion", "data", "latents")
        for f in (ROOT / "dit" / part).glob("*.py")
    ]
    below.remove(ROOT / "dit" / "latents" / "load.py")  # rank 0 looks for damaged shards there
    assert not [
        f for f in below if "Ranks" in f.read_text() or "torch.distributed" in f.read_text()
    ]


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_entry_points_are_short(script):
    assert len((ROOT / script).read_text().splitlines()) < 60


def test_import_brings_no_heavy_library():
    heavy = (
        "['diffusers', 'torch_fidelity', 'sklearn', 'matplotlib', 'tensorboard', 'torchmetrics', 'transformers',"
        " 'datasets', 'webdataset', 'pandas', 'torchao']"
    )
    imports = "import sys, dit.sampling.pipeline, dit.commands.train, dit.sampling.generate"
    code = f"{imports}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout.strip() == "[]"


def test_training_without_scores_imports_no_code_of_evaluation():
    process = forked.CONTEXT.Process(target=train_and_look_for_evaluation)
    process.start()
    try:
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()


def train_and_look_for_evaluation():
    train(TrainConfig(model="DiT-Ti/4", vae="identity", image_size=8, dry_run=True), Ranks())
    assert not [
        name for name in sys.modules if name.startswith(("dit.evaluation", "torch_fidelity"))
    ]
