"""Where compiled code of a CPU is kept."""

import os
import subprocess
import sys

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from dit.distributed.compile_cache import VARIABLE, keep_compiled_code

CPU = torch.device("cpu")
CORES = [
    "flags: avx2",
    "flags: avx2 amx",
    "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\nFeatures\t: fp asimd",
    "CPU implementer\t: 0x41\nCPU part\t: 0xd40\nFeatures\t: fp asimd",
    "CPU implementer\t: 0x41\nCPU part\t: 0xd40\nFeatures\t: fp asimd sve",
    "no such lines",
]
PRIVATE = "torch._inductor.runtime.cache_dir_utils"
COMPILE = """
import torch
from dit.distributed.compile_cache import keep_compiled_code

keep_compiled_code(torch.device("cpu"))
torch.compile(lambda x: x.sin() + 1)(torch.ones(4))
"""


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Ask without the variable; return the folder that is then named, or None."""
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))

    def ask(device=CPU, **options):
        monkeypatch.setenv(VARIABLE, "")  # restored after the test, whatever is set in it
        monkeypatch.delenv(VARIABLE)
        keep_compiled_code(device, **options)
        return os.environ.get(VARIABLE)

    return ask


def test_a_cpus_code_is_kept_in_the_cache(folder, tmp_path):
    assert folder() == folder()
    assert folder().startswith(f"{tmp_path}/cache/compiled/")
    assert os.path.isdir(folder())


def test_each_processor_has_its_own(folder, tmp_path):
    names = set()
    for number, text in enumerate(CORES):
        cpuinfo = tmp_path / f"cpuinfo-{number}"
        cpuinfo.write_text(f"{text}\ncpu MHz: {number}\n\nflags: of another core {number}")
        names.add(folder(cpuinfo=cpuinfo))
    assert len(names) == len(CORES)
    # without such lines: the rest is the same on each machine
    assert folder(cpuinfo=tmp_path / "missing") in names


def test_the_default_of_pytorch_is_no_choice_of_the_user(folder, monkeypatch):
    named = folder()
    monkeypatch.setenv(VARIABLE, default_cache_dir())
    keep_compiled_code(CPU)
    assert os.environ[VARIABLE] == named


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_of_the_user_stays(monkeypatch, moved):
    if moved:
        monkeypatch.setitem(sys.modules, PRIVATE, None)
    monkeypatch.setenv(VARIABLE, "/mine")
    keep_compiled_code(CPU)
    assert os.environ[VARIABLE] == "/mine"


def test_a_private_module_of_pytorch_may_move(folder, monkeypatch):
    expected = folder()
    monkeypatch.setitem(sys.modules, PRIVATE, None)
    assert folder() == expected


@pytest.mark.slow
def test_the_compiler_writes_its_code_there(tmp_path):
    """In a process of its own, as PyTorch reads the variable once."""
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
    subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**variables, "DIT_CACHE": str(tmp_path)},
        check=True,
    )
    files = [file for file in (tmp_path / "compiled").rglob("*") if file.is_file()]
    assert any(file.suffix == ".so" for file in files)


def test_what_cannot_be_written_is_left_to_pytorch(folder, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("DIT_CACHE", str(file))
    assert folder() is None


def test_a_gpus_code_stays_where_pytorch_puts_it(folder):
    assert folder(torch.device("cuda")) is None
