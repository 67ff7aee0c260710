"""The codebook of a VQ first stage: which entries latents are rounded to, and how many of them are in use."""

import torch
from torch import Tensor


def nearest_entries(codebook: Tensor, z: Tensor) -> Tensor:
    """Index [B, h, w] of the entry of `codebook` [K, C] nearest to each vector of z [B, C, h, w]."""
    rows = z.detach().movedim(1, -1)  # [B, h, w, C]
    return torch.cdist(rows.flatten(0, -2), codebook.detach()).argmin(1).view(rows.shape[:-1])


def usage(entries: Tensor, size: int) -> Tensor:
    """How often each of `size` entries occurs, [K]."""
    return torch.bincount(entries.flatten(), minlength=size)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of how often entries are used, `counts` [K]: as many equally used ones tell as much."""
    share = counts.double() / counts.sum()
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def restart(codebook: Tensor, dead: Tensor, z: Tensor, generator: torch.Generator) -> None:
    """Move the entries [K, C] that are `dead` [K] onto random vectors of z [B, C, h, w], in place.

    An entry that is nearest to nothing gets no gradient and would stay so (2005.00341, section 3.1).
    """
    rows = z.movedim(1, -1).flatten(0, -2)
    chosen = torch.randint(len(rows), (int(dead.sum()),), generator=generator).to(rows.device)
    codebook[dead] = rows[chosen].to(codebook)
