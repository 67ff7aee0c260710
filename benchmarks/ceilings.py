"""What the device does at best: large matrix products, and a copy."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dit.training.cost.flops import LARGE

BYTES = {"cpu": 2**28, "cuda": 2**32}  # of a tensor that no cache holds
REPEATS = 9
WHILE = 2.0  # seconds


def ceilings(device: torch.device) -> dict[str, float]:
    """FLOP/s of matrix products in bf16, fp32 and (on CUDA) TF32; bytes a second that a copy reads and writes."""
    side = LARGE[device.type]
    matrix = torch.randn(side, side, device=device)
    work, bf16 = 2 * side**3, matrix.bfloat16()
    found = {
        "bf16": work / best(lambda: bf16 @ bf16, device),
        "fp32": work / best(lambda: matrix @ matrix, device),
    }
    if device.type == "cuda":
        with tf32(True):
            found["tf32"] = work / best(lambda: matrix @ matrix, device)
    source = torch.empty(BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {**found, "copy": 2 * len(source) / best(lambda: target.copy_(source), device)}


def told(found: dict[str, float]) -> str:
    """In words."""
    rates = [f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in found.items() if name != "copy"]
    return f"Ceilings: {', '.join(rates)}, copy {found['copy'] / 1e9:.0f} GB/s."


def best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest repeat; the first warms up."""
    return min([seconds(work, device) for _ in range(REPEATS)][1:])


def seconds(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Of one call, of so many in a row, to the end of what they have queued."""
    settle(device)
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    settle(device)
    return (time.perf_counter() - begin) / calls


def calls_of(work: Callable[[], object], device: torch.device) -> int:
    """Calls in a row that are timed as one: on a GPU as many as keep it busy for a while, as in training."""
    work()  # the first after one that compiled: it may record a graph, and AdamW makes its moments
    return max(1, round(WHILE / seconds(work, device))) if device.type == "cuda" else 1


def settle(device: torch.device) -> None:
    """Wait until the device has done all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Products of float32 in TF32 meanwhile, as the original DiT trains, or in full; CUDA alone knows it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
