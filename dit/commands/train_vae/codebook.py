"""The codebook of a VQ first stage: quantisation, and how many entries are in use."""

import torch
from torch import Tensor

from dit.distributed.device import widest_float


def nearest_entries(codebook: Tensor, z: Tensor) -> Tensor:
    """Return the index [B, h, w] of the entry of `codebook` [K, C] nearest to z [B, C, h, w]."""
    rows = z.detach().movedim(1, -1)  # [B, h, w, C]
    distances = torch.cdist(rows.flatten(0, -2), codebook.detach())
    return distances.argmin(1).view(rows.shape[:-1])


def count_usage(entries: Tensor, size: int) -> Tensor:
    """Return how often each of `size` entries occurs, [K]."""
    return torch.bincount(entries.flatten(), minlength=size)


def perplexity(counts: Tensor) -> Tensor:
    """Return exp of the entropy of usage `counts` [K]: so many entries, if used equally often."""
    share = counts.to(widest_float(counts.device)) / counts.sum()
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def restart_entries(codebook: Tensor, dead: Tensor, z: Tensor, generator: torch.Generator) -> None:
    """Move `dead` [K] entries of a codebook [K, C] in place, to random vectors of z [B, C, h, w].

    An unused entry gets no gradient and would stay unused (2005.00341, section 3.1).
    """
    rows = z.movedim(1, -1).flatten(0, -2)
    count = int(dead.sum())
    chosen = torch.randint(len(rows), (count,), generator=generator)
    moved = rows[chosen.to(rows.device)]
    codebook[dead] = moved.to(codebook)
