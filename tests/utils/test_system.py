"""What macOS and Windows lack or do otherwise, with fakes of them."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dit.utils import system

ROOT = Path(__file__).parents[2]

ON_WINDOWS = """
import os, pkgutil, importlib, signal, sys
# libraries know the system by its name, which is still Linux
import torch.distributed.checkpoint, torch.distributed.fsdp, torch.utils.tensorboard
import datasets, diffusers, huggingface_hub, matplotlib.figure, sklearn.datasets, timm
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "preadv", "pread", "posix_fadvise", "O_NOFOLLOW", "O_NONBLOCK",
             "sysconf"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL"):
    delattr(signal, name)
import dit
for module in pkgutil.walk_packages(dit.__path__, "dit."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "gradio":  # an extra
                raise
from dit.cli import main
from dit.distributed.device import free_main_memory, main_memory
assert main_memory() > 0 and free_main_memory() > 0
sys.exit(main(sys.argv[1:]))
"""


def test_a_training_works_without_what_windows_lacks(tmp_path):
    flags = (
        "train --vae identity --image-size 8 --model DiT-Ti/4 --steps 2 --batch-size 4 "
        "--sample-every 0 --precision fp32 --out"
    )
    done = subprocess.run(
        [sys.executable, "-c", ON_WINDOWS, *flags.split(), tmp_path / "run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "this system has no locks" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-0000002" / "meta.json").is_file()


@pytest.fixture
def opened(tmp_path: Path):
    file = tmp_path / "bytes"
    file.write_bytes(bytes(range(256)))
    descriptor = os.open(file, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_windows_locks_by_its_own_calls(opened, monkeypatch):
    locked: list[int] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (7, 1)
        if locked:
            raise PermissionError(13, "Permission denied")
        locked.append(descriptor)

    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", SimpleNamespace(LK_NBLCK=7, locking=locking))
    system.lock_file(opened)
    assert locked == [opened]
    with pytest.raises(BlockingIOError):
        system.lock_file(opened)


def test_a_system_without_locks_says_so(opened, monkeypatch, capsys):
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", None)
    system.lock_file(opened)
    assert "run one process a folder" in capsys.readouterr().err


def test_places_of_a_file_are_read_by_many_threads_without_preadv(opened, monkeypatch):
    monkeypatch.delattr(os, "preadv")
    wrong = []

    def read(start: int) -> None:
        for _ in range(200):
            buffer = np.zeros(16, np.uint8)
            count = system.read_at(opened, buffer.data, start)
            if count != 16 or buffer.tolist() != list(range(start, start + 16)):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(16 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert system.read_at(opened, np.zeros(16, np.uint8).data, 250) == 6  # the file ends there


def test_unknown_limits_are_not_guessed_high(monkeypatch):
    monkeypatch.setattr(system, "resource", None)
    assert system.most_open_files() == system.LEAST_OPEN_FILES
    assert np.isnan(system.peak_process_memory())
