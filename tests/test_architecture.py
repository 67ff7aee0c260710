"""Folders import lower layers only, files import few others, and importing dit stays cheap."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import forked

from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))
import measure_house  # noqa: E402

LAYERS = [
    {"errors"},
    {"utils", "models", "diffusion", "config"},
    {"data", "distributed", "runs"},
    {"encoders"},
    {"latents", "build"},
    {"sampling"},
    {"evaluation"},
    {"report"},
    {"training"},
    {"export"},
    {"api"},
    {"__init__"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""Folders of the package, lowest layer first: a folder imports lower layers only."""

LOOSE = {"cli", "build", "errors"}
MOST_IMPORTS = 15
WIDE: dict[str, tuple[int, str]] = {}
"""Files that import more than 15 others of ours: how many, and why."""

READING_ORDER = [
    "models/dit.py",
    "diffusion/process.py",
    "diffusion/objective.py",
    "training/step.py",
    "diffusion/samplers.py",
    "sampling/generate.py",
]


def all_imports() -> dict[str, set[str]]:
    """Return which modules of the package each of its files imports, as `dit.a.b`."""
    files = sorted((ROOT / "dit").rglob("*.py"))
    modules = measure_house.modules_of(files)
    return {
        measure_house.module_name(file): measure_house.our_imports(file, modules) for file in files
    }


IMPORTS = all_imports()


def layer_of(folder: str) -> int:
    return next(number for number, folders in enumerate(LAYERS) if folder in folders)


def test_folders_import_lower_layers_only():
    climbing = [
        f"{importer} -> {imported}"
        for importer, imported in measure_house.arrows(IMPORTS)
        if layer_of(imported) >= layer_of(importer)
    ]
    assert climbing == []


def test_no_files_import_each_other_in_a_circle():
    left = dict(IMPORTS)
    while free := [name for name, used in left.items() if not used & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_only_three_files_are_loose():
    loose = {file.stem for file in (ROOT / "dit").glob("*.py")}
    assert loose - {"__init__", "__main__"} == LOOSE


def test_files_import_few_others():
    allowed = {name: WIDE.get(name, (MOST_IMPORTS, ""))[0] for name in IMPORTS}
    assert [name for name, used in IMPORTS.items() if len(used) > allowed[name]] == []


def test_the_method_reads_in_under_800_lines():
    lines = {name: len((ROOT / "dit" / name).read_text().splitlines()) for name in READING_ORDER}
    assert sum(lines.values()) < 800, lines


def test_networks_import_errors_only():
    used = {
        name for file, names in IMPORTS.items() if file.startswith("dit.models") for name in names
    }
    assert {measure_house.room(name) for name in used} <= {"models", "errors"}


def test_lower_layers_do_not_know_ranks():
    folders = ("models", "diffusion", "data", "latents")
    below = [file for folder in folders for file in (ROOT / "dit" / folder).glob("*.py")]
    # rank 0 checks shards for damage there
    below.remove(ROOT / "dit" / "latents" / "load.py")
    assert not [
        f for f in below if "Ranks" in f.read_text() or "torch.distributed" in f.read_text()
    ]


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_entry_points_are_short(script):
    assert len((ROOT / script).read_text().splitlines()) < 60


def test_import_brings_no_heavy_library():
    heavy = (  # noqa: SIM905
        "diffusers torch_fidelity sklearn matplotlib tensorboard torchmetrics transformers "
        "datasets webdataset pandas torchao"
    ).split()
    modules = "dit.sampling.pipeline, dit.commands.train, dit.sampling.generate"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout.strip() == "[]"


def test_training_without_scores_imports_no_code_of_evaluation():
    process = forked.CONTEXT.Process(target=train_without_evaluation)
    process.start()
    try:
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()


def train_without_evaluation():
    train(TrainConfig(model="DiT-Ti/4", vae="identity", image_size=8, dry_run=True), Ranks())
    evaluation = ("dit.evaluation", "torch_fidelity")
    assert not [name for name in sys.modules if name.startswith(evaluation)]
