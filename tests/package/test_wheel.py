"""The wheel, installed beside its core requirements only, in a folder without the repository."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
OPTIONAL = (
    *("datasets", "gradio", "sklearn", "scikit_learn", "tensorboard", "torchao", "transformers"),
    *("wandb", "webdataset", "mypy", "pytest", "ruff"),
)
"""Starts of the names of what the core does not need."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder of wheel and sdist, as they are uploaded."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT, check=True)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Return the folder of the programs of an environment with the wheel and its requirements."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, symlinks=True, with_pip=True)
    python = folder / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})

    # linked, not downloaded again; the editable install of the repository is not among them
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        name = entry.name.lower()
        if name.startswith(("dit", "diffusion_transformer", "__editable__", "pip", *OPTIONAL)):
            continue
        if not (Path(site) / entry.name).exists():
            (Path(site) / entry.name).symlink_to(entry)
    (wheel,) = built.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    return python.parent


@pytest.fixture
def run(installed, tmp_path):
    """Return a function that runs a command line in an empty folder and returns its output."""
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {"HOME": str(tmp_path), "PATH": f"{installed}:/usr/bin:/bin", "LANG": "C.UTF-8"}
    clean |= {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}

    def typed(line, code=0):
        done = subprocess.run(
            line, shell=True, cwd=empty, env=clean, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    typed.folder = empty
    return typed


def make_photos(folder):
    for number in range(24):
        colour = (40, 200, 9 * number) if number % 2 else (220, 9 * number, 40)
        file = folder / "my photos" / ("green" if number % 2 else "red") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(file)


def test_main_job_without_the_repository(run):
    make_photos(run.folder)
    said = run("dit train --data 'my photos' --steps 6 --out runs/photos")
    following = next(line for line in said.splitlines() if line.startswith("next"))
    said += run(following.removeprefix("next").strip())
    said += run("dit sample --run runs/photos --classes red --cfg-scale 1.5 --out red.png")
    assert Image.open(run.folder / "red.png").size[0] > 32
    said += run("dit evaluate --run runs/photos --num-samples 24 --steps 3")
    said += run("dit report runs/photos")
    said += run("dit info runs/photos")
    assert list((run.folder / "runs/photos").glob("**/*.html"))

    # commands are printed as they can be typed here
    for absent in ("train.py", "sample.py", "evaluate.py", "benchmarks.", "make "):
        assert absent not in said


def test_an_absent_package_is_a_line_that_says_what_to_install(run):
    said = run("dit train --data digits --steps 2 --out runs/digits", code=2)
    assert "pip install scikit-learn, or 'diffusion-transformer[digits]'" in said


def test_data_of_the_package_is_in_the_wheel(run):
    run("python -c \"from dit.report.reference_curves import *; find_reference('digits').runs\"")
    run("python -c \"import dit, os; os.stat(os.path.dirname(dit.__file__) + '/py.typed')\"")


def test_the_tests_of_the_sdist_run(built, tmp_path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    tests = ["tests/package", "tests/diffusion/test_samplers.py"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests],
        cwd=source,
        env=environment,
        check=True,
    )
