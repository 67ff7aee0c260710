"""Compiled code of CPUs, kept for later runs."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import torch

from dit.utils.cache import cache_root

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # PyTorch's, which keeps the code below /tmp without it


def keep_compiled_code(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Let torch.compile write its code for a CPU where the next run finds it, after a reboot too.

    Nothing changes where the user names a folder, or where none can be written. A GPU's code stays
    on the local disk: home directories are often on a network.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    root = cache_root()
    # PyTorch itself sets the variable to its default when it is imported
    free = os.environ.get(VARIABLE, default_cache_dir()) == default_cache_dir()
    if device.type != "cpu" or root is None or not free:
        return
    # a home directory may be shared by machines, whose code is for their own instructions
    folder = root / "compiled" / _instructions(cpuinfo)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[VARIABLE] = str(folder)


def _instructions(cpuinfo: Path) -> str:
    """Return a name of the instruction set: of the model and the flags of the first core."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    core, *_ = text.split("\n\n")
    kept = [line for line in core.splitlines() if line.startswith(("model name", "flags"))]
    known = [torch.backends.cpu.get_cpu_capability(), *kept]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
