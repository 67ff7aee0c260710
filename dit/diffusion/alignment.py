"""Alignment of a network's tokens with features of the image (REPA 2410.06940; iREPA 2512.10794).

B images, N tokens, E features.
"""

from torch import Tensor
from torch.nn.functional import cosine_similarity

from dit.diffusion.process import DDPM, Process

GAMMA = 0.8  # share of the mean over the tokens that is taken off
EPS = 1e-6
SPAN = 0.2  # how much cleaner a teacher's image is at most, in times from 0 to 1


def spatial_norm(features: Tensor) -> Tensor:
    """Return features [B, N, E] less most of their mean over the tokens, at equal deviation.

    So the alignment is less one of what all tokens share (2512.10794).
    """
    # a factor on all features changes no cosine: of N tokens or N - 1 is the same here
    deviation = features.std(dim=1, keepdim=True, correction=0)
    return (features - GAMMA * features.mean(dim=1, keepdim=True)) / (deviation + EPS)


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Return 1 - cos of each image, [B], mean over its tokens (2410.06940).

    Args:
        projected: tokens of the network after the projector, [B, N, E].
        features: what they should point to, [B, N, E].
    """
    targets = spatial_norm(features.to(projected.dtype))
    return (1 - cosine_similarity(projected, targets, dim=-1)).mean(dim=1)


def cleaner_times(process: Process, t: Tensor, uniforms: Tensor) -> Tensor:
    """Return times [B] that are smaller by a random part of `SPAN` (SRA, 2505.02831).

    Args:
        t: times [B].
        uniforms: in [0, 1), [B].
    """
    earlier = t - SPAN * process.end * uniforms.to(t)
    if isinstance(process, DDPM):
        return earlier.floor().clamp(min=1)
    return earlier.clamp(min=0)


def draws_of(align: str | None) -> int:
    """Return how many uniforms an image's alignment takes: a cleaner time needs one."""
    return int(align == "self")
