"""Flags of planning a training on many GPUs."""

from dataclasses import dataclass
from typing import Literal

from dit.config.validation import require_range, require_sides


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Reckon memory, communication and time of a training on many GPUs, without any."""

    model: str = "DiT-XL/2"
    """Size and patch: DiT-{Ti,S,B,L,XL,1B,3B,7B}/{1,2,4,8}."""
    depth: int | None = None
    """Blocks, where they are not those of --model."""
    width: int | None = None
    """Features of a token, where they are not those of --model."""
    heads: int | None = None
    """Attention heads, where they are not those of --model."""
    image_size: int | tuple[int, int] = 256
    """Side of the images in pixels, or their height and width; latents have an eighth of it and four channels."""
    gpus: tuple[int, ...] = (8,)
    """Number of GPUs, or several numbers to compare."""
    gpu: Literal["a100", "h100", "h200", "b200"] = "h100"
    """Kind of GPU: gives peak, memory and bandwidths, as on its data sheet (the SXM module's)."""
    global_batch_size: int = 256
    """Images per optimizer step, over all GPUs."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """What a GPU holds: ddp everything, fsdp its share; auto shows both."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing, as in train.py."""
    averages: int = 1
    """How many EMAs follow the weights."""
    images: float = 1.024e8
    """Images of the whole training, for its GPU-hours; unless given those of 400,000 steps of 256."""
    efficiency: float = 0.4
    """Share of the peak that the network's matrix products reach; measure it on one GPU to know it."""
    tflops: float | None = None
    """Peak of a GPU in bfloat16, dense, in TFLOP/s, where it is not that of --gpu."""
    memory: float | None = None
    """Memory of a GPU in GiB, where it is not that of --gpu."""
    nvlink: float | None = None
    """GB/s that a GPU sends to others of its node, where they are not those of --gpu."""
    network: float | None = None
    """GB/s that a GPU sends to other nodes, where they are not those of --gpu."""
    gpus_per_node: int = 8
    """GPUs that NVLink connects."""

    def __post_init__(self) -> None:
        require_sides(self)
        require_range(self, ("gpus",), lambda v: len(v) > 0 and min(v) > 0, "numbers above 0")
        require_range(
            self,
            ("global_batch_size", "averages", "images", "gpus_per_node"),
            lambda v: v > 0,
            "a number above 0",
        )
        require_range(
            self,
            ("depth", "width", "heads", "tflops", "memory", "nvlink", "network"),
            lambda v: v is None or v > 0,
            "a number above 0",
        )
        require_range(self, ("efficiency",), lambda v: 0 < v <= 1, "a share in (0, 1]")
