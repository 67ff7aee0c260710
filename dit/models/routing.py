"""How tokens pass the blocks; in routing (TREAD, 2501.04765) half of them skip the middle ones.

B images, T tokens of an image, K kept ones, S tokens of a condition, D features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dit.models.embeddings import Condition


def number_kept(share: float, tokens: int) -> int:
    """Return how many of so many tokens are kept where this share skips; at least one."""
    return max(1, round((1 - share) * tokens))


def kept_tokens(uniforms: Tensor, share: float) -> Tensor:
    """Return the tokens of each image that are kept, in their order: [B, T] in 0..1 -> [B, K]."""
    count = number_kept(share, uniforms.shape[1])
    return uniforms.argsort(dim=1)[:, :count].sort(dim=1).values


def routed_blocks(depth: int) -> range:
    """Return the blocks that kept tokens alone pass: 2 to 8 of 12, 2 to 24 of 28 (section 4).

    Of smaller networks, all but the first and the last.
    """
    return range(2, depth - 3) if depth >= 12 else range(1, max(1, depth - 1))


def run_blocks(
    blocks: Sequence[nn.Module], tokens: Tensor, c: Condition, tap: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Run blocks on tokens [B, T + S, D]; return them after all blocks, and after the first `tap`.

    The second is None if there are not so many blocks, or `tap` is 0.
    """
    early = None
    for number, block in enumerate(blocks, start=1):
        tokens = block(tokens, c)
        if number == tap:
            early = tokens
    return tokens, early


def run_routed(
    blocks: Sequence[nn.Module],
    tokens: Tensor,
    c: Condition,
    keep: Tensor,
    places: int,
    tap: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Run blocks as `run_blocks` does; the middle ones on `keep` [B, K] of the image alone.

    All others return to their places as they came to the middle.

    Args:
        places: T. Tokens of a condition follow those of the image, and never skip.
        tap: at most the last block of the middle. Within it, tokens return as after it.
    """
    middle = routed_blocks(len(blocks))
    others = torch.arange(places, tokens.shape[1], device=keep.device).expand(len(keep), -1)
    ids = torch.cat([keep, others], dim=1)[..., None].expand(-1, -1, tokens.shape[-1])

    first, short = blocks[: middle.start], blocks[middle.start : middle.stop]
    tokens, early = run_blocks(first, tokens, c, tap)
    kept, early_kept = run_blocks(short, tokens.gather(1, ids), c.at(keep), tap - middle.start)
    if early_kept is not None:
        early = tokens.scatter(1, ids, early_kept.to(tokens.dtype))
    tokens = tokens.scatter(1, ids, kept.to(tokens.dtype))
    return run_blocks(blocks[middle.stop :], tokens, c)[0], early
