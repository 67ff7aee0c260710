"""torch.compile, as every network of this package is compiled."""

import platform
from collections.abc import Callable
from typing import Any

import torch


def compile_sizes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors, or a network, once for each size of its inputs."""
    return torch.compile(function, dynamic=False, options=_options())


def _options() -> dict[str, Any] | None:
    """Return a compiler flag that GCC needs on x86: without it, gradients may be NaN.

    GCC 12.2 makes wrong code of gradients of rows of 64 bfloat16 numbers or more, such as those of
    a softmax, with AVX-512 and for a processor that it does not know (-mtune=generic). Its
    vectorizer of straight lines does it. PyTorch's code is of vectors already.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    # imported late: it takes seconds
    from torch._inductor import config

    # PyTorch has the setting since 2.15; the user's own is TORCHINDUCTOR_CPP_MARCH
    if getattr(config.cpp, "march", "") is not None:
        return None
    return {"cpp.march": "native -fno-tree-slp-vectorize"}
