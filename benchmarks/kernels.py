"""GPU time of a step by kind of kernel."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": r"flash|fmha|sdpa|attention|dot_do_o|convert_dq",
    "products": r"gemm|nvjet|cutlass|xmma|splitk|cublas|_mm",
    "optimizer and average": r"multi_tensor|adam|lerp",
    "compiled code": r"^triton",
    "copies": r"^mem(cpy|set)",
}
"""Patterns of kernel names; the first that matches decides."""

LISTED = 30  # kernels reported by name
NAME_LENGTH = 200  # characters


def kernels(step: Callable[[], object]) -> dict[str, Any]:
    """Return milliseconds of one step by kind, and of the slowest kernels by name."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()

    names = Counter[str]()
    kinds = Counter[str]()
    for event in profiled.key_averages():
        if event.device_type == DeviceType.CUDA:
            ms = event.self_device_time_total / 1000
            names[event.key[:NAME_LENGTH]] += ms
            kinds[kind_of(event.key)] += ms
    return {"ms": dict(kinds.most_common()), "longest": dict(names.most_common(LISTED))}


def kind_of(kernel: str) -> str:
    for kind, pattern in KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "others"
