"""Which device computes, and what it offers: memory, precision, attention."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dit.distributed.launcher import Launch, read_launch
from dit.errors import UserError
from dit.utils.package import __version__

DEVICE = "DIT_DEVICE"  # environment variable that chooses the kind of device
WITHOUT_FLOAT64 = {"mps"}  # kinds of devices
UNKNOWN_MEMORY = 2**50  # of a system that does not say: nothing is refused for it
CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max"),  # version 2
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),  # version 1
}


def choose_device(launch: Launch, environ: Mapping[str, str] = os.environ) -> torch.device:
    """Return this rank's device: its NVIDIA or AMD GPU, Apple's GPU, or the CPU.

    Apple's GPU takes one process: ranks cannot exchange its tensors.
    """
    asked = environ.get(DEVICE, "").strip()
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and launch.world == 1,
        "cpu": True,
    }
    if asked and not has.get(asked):
        there = [kind for kind, is_there in has.items() if is_there]
        expected = f"{' or '.join(there)}, which this machine has"
        raise UserError(
            f"{DEVICE}={asked} in the environment", expected, f"change or unset {DEVICE}"
        )
    kind = asked or next(kind for kind, is_there in has.items() if is_there)
    return _choose_gpu(launch) if kind == "cuda" else torch.device(kind)


def _choose_gpu(launch: Launch) -> torch.device:
    """Return this rank's GPU, and make it the current one."""
    count = torch.cuda.device_count()
    if launch.local_rank >= count:
        raise UserError(
            f"rank {launch.local_rank} of this machine, which has {count} GPUs",
            "one rank a GPU",
            f"start with `torchrun --nproc-per-node {count}`",
        )
    device = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(device)
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """Return the type for sums on a device: float64 where it has it."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def with_float64(device: torch.device) -> torch.device:
    """Return the device, or the CPU in place of one without float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def device_kind(device: torch.device) -> str:
    """Return what numbers depend on: `cpu`, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor in memory that a GPU copies from without the CPU waiting."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory()
    return tensor


def available_memory(device: torch.device) -> int:
    """Return the bytes a rank may use: its GPU's, or its part of the machine's main memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return main_memory() // read_launch().local_world


def free_memory(device: torch.device) -> int:
    """Return the bytes a rank can get: its GPU's, or its part of the machine's free main memory."""
    if device.type == "cuda":
        return available_memory(device)
    return free_main_memory() // read_launch().local_world


def describe_free(device: torch.device) -> str:
    """Return in words what `free_memory` is: a GPU's may be in use by others."""
    return "of this GPU" if device.type == "cuda" else "that are free on this machine"


def free_main_memory(root: Path = Path("/")) -> int:
    """Return the bytes of main memory and swap that are free, or those of the container or job."""
    rows = {}
    file = root / "proc/meminfo"
    # such as "MemAvailable:   23456 kB"
    for line in file.read_text().splitlines() if file.exists() else ():
        name, value = line.split()[:2]
        rows[name] = int(value) * 1024
    free = rows.get("MemAvailable:", main_memory(root)) + rows.get("SwapFree:", 0)
    return min([free, *_cgroup_limits(root)])


def main_memory(root: Path = Path("/")) -> int:
    """Return the bytes of the machine's memory, or those that its container or job may use."""
    machine = UNKNOWN_MEMORY
    if hasattr(os, "sysconf"):  # not on Windows
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the limits in bytes of this process's control groups and of those around them."""
    groups = root / "proc/self/cgroup"
    # Lines such as 0::/user.slice (version 2) or 4:memory:/job (version 1).
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in CGROUPS:
            continue
        mount, name = CGROUPS[controllers]
        group = root / mount / path.lstrip("/")
        for folder in (group, *group.parents):
            file = folder / name
            if file.exists():
                limit = file.read_text().strip()
                if limit != "max":
                    yield int(limit)


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False  # the first of these GPUs emulate it; --precision bf16 asks for it
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compute_precision(device: torch.device, precision: str) -> str:
    """Return `precision`; for `auto`, bf16 where the device is faster with it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if fast_bf16(device) else "fp32"


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether networks compute in bfloat16; with `fp8`, all but their float8 layers."""
    return compute_precision(device, precision) != "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return a context of mixed precision, unless `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, precision))


def choose_attention(network: torch.nn.Module, device: torch.device, precision: str) -> None:
    """Use fused attention, but on CPU in bf16, where plain attention trains 1.5 to 5x faster."""
    fused = not (device.type == "cpu" and uses_bf16(device, precision))
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]


def library_versions(*libraries: str) -> dict[str, str | None]:
    """Return versions of libraries; None of those that are not installed."""
    return {name: _version(name) for name in libraries}


def _version(library: str) -> str | None:
    if library == "dit":
        return __version__
    try:
        return version(library)
    except PackageNotFoundError:
        return None
