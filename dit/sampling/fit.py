"""Refuse a batch that surely does not fit into memory, before it is computed."""

import math
from typing import Any

from dit.config import SamplerConfig
from dit.distributed.device import free_memory, uses_bf16
from dit.errors import UserError
from dit.models.dit import PatchTransformer
from dit.sampling.load import LoadedRun, without_captions

GIB = 2**30


def require_batch_fits(run: LoadedRun, settings: SamplerConfig) -> None:
    """Refuse a batch whose largest two activations alone exceed the memory."""
    network = without_captions(run.denoise.network)
    if not isinstance(network, PatchTransformer):
        return
    # classifier-free guidance calls the network with two rows an image
    rows = 2 if settings.cfg_scale != 1 and not settings.guide else 1
    width = 2 if uses_bf16(run.device, settings.precision) else 4
    blocks: Any = network.blocks
    hidden = blocks[0].mlp.fc1.out_features
    # of an MLP's nonlinearity: what it takes, and what it returns
    of_image = 2 * rows * math.prod(network.grid) * hidden * width
    need, free = of_image * settings.batch_size, free_memory(run.device)
    if need > free:
        raise UserError(
            f"--batch-size {settings.batch_size} needs more than {need / GIB:.2f} GiB",
            f"at most the {free / GIB:.2f} GiB that are free",
            # all activations of a block take about three times as much
            f"pass --batch-size {max(1, free // (4 * of_image))}",
        )
