"""Where the GPU's time of a step goes, by kind of kernel."""

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
"""By what is in a kernel's name; the first that fits."""
LONGEST, LETTERS = 30, 200  # kernels that are told by name, and how much of it


def kernels(step: Callable[[], object]) -> dict[str, Any]:
    """Milliseconds of one step by kind, and of the kernels that take longest by name."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
    names, kinds = Counter[str](), Counter[str]()
    for event in found.key_averages():
        if event.device_type == DeviceType.CUDA:
            ms = event.self_device_time_total / 1000
            names[event.key[:LETTERS]] += ms
            kinds[kind_of(event.key)] += ms
    return {"ms": dict(kinds.most_common()), "longest": dict(names.most_common(LONGEST))}


def kind_of(kernel: str) -> str:
    """What a kernel of this name does."""
    return next(
        (kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)),
        "others",
    )
