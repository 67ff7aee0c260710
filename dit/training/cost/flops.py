"""FLOPs of training, and the share of the device's peak that they make (MFU)."""

import re
import time
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from dit.build import count_multiply_adds
from dit.config import TrainConfig
from dit.diffusion.meanflow import forward_passes, mix_of
from dit.distributed.device import device_kind
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.vision import VisionEncoder
from dit.runs.card import ModelCard, NetworkSpec
from dit.training.cost.alignment import mean_alignment_flops
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
"""By the GPU's name: TFLOP/s in bf16 on tensor cores without sparsity, and in fp32 without TF32."""
PARTIAL_GPU = r"\bMIG\b|Laptop"  # names of GPUs that have less than the data sheet says
MATRIX_SIDE = {"cpu": 1024, "mps": 2048, "cuda": 8192}  # of matrices that keep a device busy
MEASURING = 0.3  # seconds


class Peak(NamedTuple):
    """FLOP/s that one device reaches at best, and the source of this figure."""

    flops: float
    source: str


@dataclass(frozen=True)
class Meter:
    """FLOPs of training, to be compared with the devices' peak.

    Args:
        flops: to train on one image.
        peak: of one device.
        devices: of all ranks.
    """

    flops: float
    peak: Peak
    devices: int

    def utilisation(self, img_per_s: float) -> float:
        """Return the model FLOPs utilisation (2204.02311, appendix B): needed FLOP/s over peak."""
        return img_per_s * self.flops / (self.peak.flops * self.devices)


def meter(session: TrainingSession) -> Meter:
    """Return the meter of a run; all ranks use rank 0's peak."""
    tokens = session.captions.encoder.length if session.captions else 0
    bf16 = session.plan.precision != "fp32"
    peak = session.ranks.on_main(lambda: peak_of(session.ranks.device, bf16))
    flops = flops_per_image(
        session.card, session.steps, tokens, session.autoencoder, session.vision
    )
    return Meter(flops, peak, session.ranks.world)


def flops_per_image(
    card: ModelCard,
    steps: int,
    text_tokens: int = 0,
    autoencoder: Autoencoder | None = None,
    vision: VisionEncoder | None = None,
) -> float:
    """Return the FLOPs to train on one image, in the mean of the first `steps` of a run.

    Not counted are what activation checkpointing computes again, the optimizer, and frozen networks
    but those of --align.

    Args:
        autoencoder, vision: of an encoder of --align, see `alignment_flops`.
    """
    aligned = mean_alignment_flops(card, steps, text_tokens, autoencoder, vision)
    return training_flops(card.network, card.config, text_tokens) + aligned


def training_flops(spec: NetworkSpec, config: TrainConfig, text_tokens: int = 0) -> float:
    """Return the FLOPs to train on one image without --align.

    They are those of a plain step, and two a multiply-add in each pass of the loss beside.
    """
    return plain_flops(spec, config, text_tokens) * (1 + more_forward_passes(config) / 3)


def plain_flops(spec: NetworkSpec, config: TrainConfig, text_tokens: int = 0) -> float:
    """Return the FLOPs of one pass forward and backward for an image.

    They are six a multiply-add, two forward and four backward.
    """
    return 6.0 * count_multiply_adds(spec, text_tokens, config.route, spec.inner_head)


def more_forward_passes(config: TrainConfig) -> float:
    """Return how many forward passes the loss of an image takes beside that with a gradient."""
    if config.objective != "meanflow":
        return 0.0
    classic, scale = config.meanflow_form == "classic", config.meanflow_scale
    mix = mix_of(scale, config.meanflow_mix)
    return forward_passes(classic, config.meanflow_instant, scale, mix)


def peak_of(device: torch.device, bf16: bool) -> Peak:
    """Return the peak on a known GPU's data sheet, else measure it."""
    kind = "bf16" if bf16 else "fp32"
    if known := data_sheet(device_kind(device), bf16):
        return Peak(known, f"data sheet, dense {kind}")

    side = MATRIX_SIDE[device.type]
    source = f"measured, {kind} products of {side} x {side} matrices"
    return Peak(measured_rate(device, side, bf16), source)


def data_sheet(name: str, bf16: bool) -> float | None:
    """Return the FLOP/s of a known GPU; None for others, and for parts of a GPU."""
    if re.search(PARTIAL_GPU, name):
        return None
    for pattern, (in_bf16, in_fp32) in DATA_SHEETS.items():
        if re.search(pattern, name):
            return TERA * (in_bf16 if bf16 else in_fp32)
    return None


@cache
def measured_rate(device: torch.device, side: int, bf16: bool) -> float:
    """Return the FLOP/s of the fastest of the matrix products done in a moment."""
    # a generator of its own leaves training's random stream alone
    random = torch.Generator().manual_seed(0)
    kind = torch.bfloat16 if bf16 else torch.float32
    matrix = torch.randn(side, side, generator=random).to(device, kind)

    # the first product warms up; the fastest one counts, as others share the device
    seconds = [_seconds(matrix), _seconds(matrix)]
    until = time.perf_counter() + MEASURING
    while time.perf_counter() < until:
        seconds.append(_seconds(matrix))
    return 2 * side**3 / min(seconds)


def _seconds(matrix: torch.Tensor) -> float:
    begin = time.perf_counter()
    # reading a number waits for a GPU
    (matrix @ matrix)[0, 0].item()
    return time.perf_counter() - begin
