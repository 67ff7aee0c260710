"""Imports go down only, and importing the package stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import forked
from dit.config import TrainConfig
from dit.hardware import Ranks
from dit.training.trainer import train

ROOT = Path(__file__).parent.parent
LEVELS = [
    {"errors", "__init__"},
    {"files", "hub"},
    {"hardware"},
    {"models", "data", "pictures", "diffusion", "profiles"},
    {"latents", "text"},
    {"config"},
    {"runs", "presets"},
    {"build", "convert", "posthoc"},
    {"trained", "inference"},
    {"sampling_plan"},
    {"generate", "encode"},
    {"sample_folder"},
    {"evaluation"},
    {"report"},
    {"training", "first_stage", "sample", "show", "info", "likelihood"},
    {"scaling", "verify"},
    {"cli"},
]
WITHIN_EVALUATION = [
    {"networks"},
    {"inputs"},
    {"scores"},
    {"references", "sampling"},
    {"protocol"},
    {"pages"},
    {"findings", "compare", "stats", "sweep"},
    {"evaluate"},
]
WITHIN_DIFFUSION = ["process", "denoiser", "guidance", "objective", "importance", "density", "classifier", "samplers"]


def level(part: str) -> int:
    """How high in the house a part of the package lies."""
    return next(i for i, parts in enumerate(LEVELS) if part in parts)


def imported(file: Path) -> set[str]:
    """Modules of the package that a file imports, as `dit.a.b`."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    for node in (n for n in nodes if isinstance(n, ast.ImportFrom)):
        names |= {f"dit.{a.name}" for a in node.names} if node.module == "dit" else {node.module or ""}
    return {name for name in names if name.startswith("dit.")}


@pytest.mark.parametrize("file", sorted((ROOT / "dit").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file):
    part = file.relative_to(ROOT / "dit").parts[0].removesuffix(".py")
    for name in imported(file):
        other = name.split(".")[1]
        allowed = other == part or level(other) < level(part)
        assert allowed, f"{file} imports {name} from above or beside"


def test_diffusion_imports_go_down():
    for i, name in enumerate(WITHIN_DIFFUSION):
        used = {m.split(".")[2] for m in imported(ROOT / "dit" / "diffusion" / f"{name}.py") if "diffusion" in m}
        assert used <= set(WITHIN_DIFFUSION[:i]), name


def test_evaluation_imports_go_down():
    for file in (ROOT / "dit" / "evaluation").rglob("*.py"):
        part = file.relative_to(ROOT / "dit" / "evaluation").parts[0].removesuffix(".py")
        for name in imported(file):
            if part != "__init__" and name.startswith("dit.evaluation."):
                other = name.split(".")[2]
                here, there = (next(i for i, rooms in enumerate(WITHIN_EVALUATION) if room in rooms)
                               for room in (part, other))
                assert other == part or there < here, f"{file} imports {name} from above or beside"


def test_networks_know_nothing_of_the_package_but_errors():
    for file in (ROOT / "dit" / "models").glob("*.py"):
        assert {name.split(".")[1] for name in imported(file)} <= {"models", "errors"}


def test_ranks_are_known_only_above():
    below = [f for part in ("models", "diffusion", "data", "latents") for f in (ROOT / "dit" / part).glob("*.py")]
    assert not [f for f in below if "Ranks" in f.read_text() or "torch.distributed" in f.read_text()]


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_entry_points_are_short(script):
    assert len((ROOT / script).read_text().splitlines()) < 60


def test_import_brings_no_heavy_library():
    heavy = "['diffusers', 'torch_fidelity', 'sklearn', 'matplotlib', 'tensorboard', 'torchmetrics', 'transformers'," \
            " 'datasets', 'webdataset', 'pandas', 'torchao']"
    imports = "import sys, dit.sampling_plan, dit.training.trainer, dit.generate"
    code = f"{imports}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
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
    assert not [name for name in sys.modules if name.startswith(("dit.evaluation", "torch_fidelity"))]
