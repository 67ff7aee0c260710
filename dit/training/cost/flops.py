"""How much arithmetic training is, and what share of the device's best that makes (MFU)."""

import re
import time
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from dit.distributed.device import device_kind, uses_bf16
from dit.models.registry import multiply_adds
from dit.runs.card import NetworkSpec
from dit.training.session import TrainingSession

TERA = 1e12
DATA_SHEETS = {
    r"\bB200\b": (2250, 75),
    r"\bH100 PCIe": (756, 51.2),
    r"\bH[12]00 NVL": (835, 60),
    r"\b(H100|H200|H800|GH200)\b": (989, 66.9),
    r"\b(A100|A800)\b": (312, 19.5),
    r"\bA40\b": (149.7, 37.4),
    r"\bA30\b": (165, 10.3),
    r"\bA10\b": (125, 31.2),
    r"\bL40S\b": (362, 91.6),
    r"\bL40\b": (181, 90.5),
    r"\bL4\b": (121, 30.3),
    r"\bRTX A6000\b": (154.8, 38.7),
    r"\bRTX 6000 Ada\b": (364, 91.1),
    r"\bRTX 3090$": (71, 35.6),
    r"\bRTX 4090$": (165.2, 82.6),
    r"\bRTX 5090$": (209.5, 104.8),
}
"""TFLOP/s in bf16, on tensor cores without sparsity, and in fp32, without TF32; by the GPU's name."""
PARTS = r"\bMIG\b|Laptop"  # names of less than the whole
LARGE = {"cpu": 1024, "cuda": 8192}  # side of a matrix that keeps a device busy
MOMENT = 0.3  # seconds of measuring


class Peak(NamedTuple):
    """FLOP/s that one device reaches at best, and how that is known."""

    flops: float
    source: str


@dataclass(frozen=True)
class Meter:
    """What training costs, and what there is to spend.

    Args:
        flops: to train on one image.
        peak: of one device.
        devices: all ranks'.
    """

    flops: float
    peak: Peak
    devices: int

    def utilisation(self, img_per_s: float) -> float:
        """Model FLOPs utilisation (2204.02311, appendix B): FLOP/s that the network needs over those there are."""
        return img_per_s * self.flops / (self.peak.flops * self.devices)


def meter(session: TrainingSession) -> Meter:
    """Of a run on these ranks; each of them gets rank 0's."""
    tokens = session.captions.encoder.length if session.captions else 0
    bf16 = uses_bf16(session.ranks.device, session.config.precision)
    peak = session.ranks.on_main(lambda: peak_of(session.ranks.device, bf16))
    return Meter(training_flops(session.card.network, tokens), peak, session.ranks.world)


def training_flops(spec: NetworkSpec, text_tokens: int = 0) -> float:
    """To train a network on one image: six for each multiply-add, two forward and four backward.

    What activation checkpointing computes again is not counted, nor are autoencoder, text encoder and optimizer.
    """
    return 6.0 * multiply_adds(spec.model, text_tokens, **spec.sizes)


def peak_of(device: torch.device, bf16: bool) -> Peak:
    """From the data sheet of a GPU that is known, else measured."""
    kind = "bf16" if bf16 else "fp32"
    if known := data_sheet(device_kind(device), bf16):
        return Peak(known, f"data sheet, dense {kind}")
    side = LARGE[device.type]
    return Peak(
        measured_rate(device, side, bf16), f"measured, {kind} products of {side} x {side} matrices"
    )


def data_sheet(name: str, bf16: bool) -> float | None:
    """FLOP/s of a GPU of this name, on its data sheet, if it is known and whole."""
    found = next(
        (rates for pattern, rates in DATA_SHEETS.items() if re.search(pattern, name)), None
    )
    return found[0 if bf16 else 1] * TERA if found and not re.search(PARTS, name) else None


@cache
def measured_rate(device: torch.device, side: int, bf16: bool) -> float:
    """FLOP/s of the fastest of the matrix products done in a moment, the first of which warms up; once a process."""
    random = torch.Generator().manual_seed(0)  # training's own is not touched
    matrix = torch.randn(side, side, generator=random).to(
        device, torch.bfloat16 if bf16 else torch.float32
    )
    found, until = [_seconds(matrix), _seconds(matrix)], time.perf_counter() + MOMENT
    while time.perf_counter() < until:
        found.append(_seconds(matrix))
    return 2 * side**3 / min(found)


def _seconds(matrix: torch.Tensor) -> float:
    """Of its product with itself."""
    begin = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # waits for a GPU
    return time.perf_counter() - begin
