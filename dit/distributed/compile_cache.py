"""Compiled code of CPUs, kept for later runs."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import torch

from dit.utils.cache import cache_root

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # PyTorch's, which keeps the code below /tmp without it

IDENTITY = ("model name", "flags", "CPU implementer", "CPU part", "Features")  # in /proc/cpuinfo


def keep_compiled_code(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Let torch.compile write its code for a CPU where the next run finds it, after a reboot too.

    Nothing changes where the user names a folder, or where none can be written. A GPU's code stays
    on the local disk: home directories are often on a network.
    """
    root = cache_root()
    if device.type != "cpu" or root is None or _is_named_by_user():
        return
    # a home directory may be shared by machines, whose code is for their own instructions
    folder = root / "compiled" / _instructions(cpuinfo)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[VARIABLE] = str(folder)


def _is_named_by_user() -> bool:
    """Whether the variable has another value than PyTorch's own.

    PyTorch sets it to its default when its compiler is imported.
    """
    named = os.environ.get(VARIABLE)
    # a private function: where it has moved, whatever is named counts as the user's
    with suppress(ImportError):
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        return named not in (None, default_cache_dir())
    return named is not None


def _instructions(cpuinfo: Path) -> str:
    """Return a name of the instruction set: of the model and the flags of the first core.

    Linux names them `model name` and `flags` on x86, and CPU implementer, CPU part and Features on
    ARM.
    """
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    core, *_ = text.split("\n\n")
    kept = [line for line in core.splitlines() if line.startswith(IDENTITY)]
    known = [torch.backends.cpu.get_cpu_capability(), *kept]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
