"""Where compiled code of a CPU is kept."""

import os

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from dit.distributed.compile_cache import VARIABLE, keep_compiled_code

CPU = torch.device("cpu")


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
    for number, text in enumerate(["flags: avx2", "flags: avx2 amx", "no such lines"]):
        cpuinfo = tmp_path / f"cpuinfo-{number}"
        cpuinfo.write_text(f"{text}\ncpu MHz: {number}\n\nflags: of another core {number}")
        names.add(folder(cpuinfo=cpuinfo))
    assert len(names) == 3
    # without such lines: the rest is the same on each machine
    assert folder(cpuinfo=tmp_path / "missing") in names


def test_the_default_of_pytorch_is_no_choice_of_the_user(folder, monkeypatch):
    named = folder()
    monkeypatch.setenv(VARIABLE, default_cache_dir())
    keep_compiled_code(CPU)
    assert os.environ[VARIABLE] == named


def test_a_folder_of_the_user_stays(monkeypatch):
    monkeypatch.setenv(VARIABLE, "/mine")
    keep_compiled_code(CPU)
    assert os.environ[VARIABLE] == "/mine"


def test_what_cannot_be_written_is_left_to_pytorch(folder, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("DIT_CACHE", str(file))
    assert folder() is None


def test_a_gpus_code_stays_where_pytorch_puts_it(folder):
    assert folder(torch.device("cuda")) is None
