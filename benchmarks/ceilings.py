"""What the device does at best: large matrix products, and a copy of memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dit.training.cost.flops import MATRIX_SIDE

COPIED_BYTES = {"cpu": 2**28, "cuda": 2**32}  # more than any cache holds
REPEATS = 9
TIMED_SECONDS = 2.0  # of calls in a row on a GPU


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """Return FLOP/s of products in bf16, fp32 and (CUDA) TF32, and bytes/s of a copy.

    A copied byte counts twice: it is read and written.
    """
    side = MATRIX_SIDE[device.type]
    matrix = torch.randn(side, side, device=device)
    bf16 = matrix.bfloat16()
    flops = 2 * side**3

    rates = {
        "bf16": flops / best_seconds(lambda: bf16 @ bf16, device),
        "fp32": flops / best_seconds(lambda: matrix @ matrix, device),
    }
    if device.type == "cuda":
        with tf32(True):
            rates["tf32"] = flops / best_seconds(lambda: matrix @ matrix, device)

    source = torch.empty(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * len(source) / best_seconds(lambda: target.copy_(source), device)
    return {**rates, "copy": copy}


def fastest_products(rates: dict[str, float]) -> float:
    """Return FLOP/s of the fastest arithmetic: not bf16 on a processor without it."""
    return max(rate for name, rate in rates.items() if name != "copy")


def format_ceilings(rates: dict[str, float]) -> str:
    products = [
        f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items() if name != "copy"
    ]
    return f"Ceilings: {', '.join(products)}, copy {rates['copy'] / 1e9:.0f} GB/s."


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return seconds of the quickest repeat; the first is a warm-up."""
    return min([seconds(work, device) for _ in range(REPEATS)][1:])


def seconds(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Return seconds of one call, averaged over `calls` in a row, with all queued kernels done."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return (time.perf_counter() - begin) / calls


def calls_per_timing(work: Callable[[], object], device: torch.device) -> int:
    """Return how many calls in a row are timed as one: on a GPU enough to keep it busy."""
    # This is the call after the one that compiled. It may record a CUDA graph, and AdamW
    # allocates its moments.
    work()
    if device.type != "cuda":
        return 1
    return max(1, round(TIMED_SECONDS / seconds(work, device)))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Compute float32 products in TF32, as the original DiT trains, or in full (CUDA only)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
