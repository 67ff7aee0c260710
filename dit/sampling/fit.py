"""What a batch of samples needs at least."""

import math
from typing import Any

from dit.distributed.device import uses_bf16
from dit.distributed.shortage import require_batch_fits
from dit.models.dit import PatchTransformer
from dit.sampling.load import LoadedRun, without_captions


def require_samples_fit(run: LoadedRun, images: int, precision: str, rows: int = 1) -> None:
    """Refuse a batch that surely does not fit into memory, in the network or when it is decoded.

    Args:
        run: What to call.
        images: At once.
        precision: Of the network.
        rows: Of an image in a call of the network, two with classifier-free guidance.
    """
    need = run.autoencoder.image_bytes(run.image_size)
    network = without_captions(run.denoise.network)
    if isinstance(network, PatchTransformer):
        blocks: Any = network.blocks
        hidden = blocks[0].mlp.fc1.out_features
        width = 2 if uses_bf16(run.device, precision) else 4
        # of an MLP's nonlinearity: what it takes, and what it returns
        need = max(need, 2 * rows * math.prod(network.grid) * hidden * width)
    require_batch_fits(images, need, run.device)
