"""What a device can do: its kind, memory, precision, attention."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
}  # v2, v1


def device_kind(device: torch.device) -> str:
    """What arithmetic depends on: `cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In memory that a GPU fetches from by itself, so that nothing waits for it."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def available_memory(device: torch.device) -> int:
    """Bytes that a rank may have: its GPU's, or an equal part of the machine's for each rank on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return main_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def main_memory(root: Path = Path("/")) -> int:
    """Bytes of the machine's memory, or what a container or a job may have of it."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Bytes that the control groups of this process allow, and those around them."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in CGROUPS:
            mount, name = CGROUPS[controllers]
            own = root / mount / path.lstrip("/")
            said = [
                (group / name).read_text().strip()
                for group in (own, *own.parents)
                if (group / name).exists()
            ]
            yield from (int(limit) for limit in said if limit != "max")


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run faster than float32 ones here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compute_precision(device: torch.device, precision: str) -> str:
    """What a precision means here: itself, or of `auto` bf16 where it is fast, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if fast_bf16(device) else "fp32"


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether networks compute in bfloat16 here; with `fp8`, all but what is float8."""
    return compute_precision(device, precision) != "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision, unless `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, precision))


def choose_attention(network: torch.nn.Module, device: torch.device, precision: str) -> None:
    """Fused attention, but on CPU in bf16, where plain attention trains 1.5 to 5 times faster."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = not (device.type == "cpu" and uses_bf16(device, precision))  # type: ignore[assignment]


def library_versions(*libraries: str) -> dict[str, str | None]:
    """Versions of installed libraries; None of those that are not."""
    return {name: _version(name) for name in libraries}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
