"""Embeddings of times, class ids and positions. B images, T tokens, D features."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn


class TimestepEmbedder(nn.Module):
    """Times to vectors: sinusoids of 256 frequencies, then two linear layers."""

    def __init__(self, hidden_size: int, num_frequencies: int = 256):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(
            nn.Linear(num_frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:  # [B] -> [B, D]
        return self.mlp(sinusoids(t, self.num_frequencies).to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]


class LabelEmbedder(nn.Module):
    """Class ids to vectors; the id `num_classes` is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, hidden_size: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y: Tensor) -> Tensor:  # [B] -> [B, D]
        return self.embedding_table(y)


def sinusoids(position: Tensor, size: int) -> Tensor:
    """Cosines and sines at geometric frequencies 1 … 1/10000: [N] -> [N, size], in at least float32."""
    half, dtype = size // 2, torch.promote_types(position.dtype, torch.float32)
    frequencies = torch.exp(
        -math.log(10000) * torch.arange(half, dtype=dtype, device=position.device) / half
    )
    angles = position[:, None].to(dtype) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_embedding(
    hidden_size: int, grid: tuple[int, int], trained: tuple[int, int] | None = None
) -> Tensor:
    """Fixed 2-D sin-cos positions: [h * w, D]; half of the features tell the column, half the row.

    Args:
        grid: (h, w), tokens along each axis.
        trained: the grid that a network learned on, which is stretched over this one: both have the same edges.
    """
    rows, columns = (
        _axis(size, old, hidden_size // 2) for size, old in zip(grid, trained or grid, strict=True)
    )
    rows, columns = rows[:, None].expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)
    return rearrange(torch.cat([columns, rows], dim=-1), "h w d -> (h w) d").float()


def _axis(size: int, trained: int, features: int) -> Tensor:
    """[size, features] for the middles of `size` tokens on an axis that was `trained` tokens long."""
    middles = (torch.arange(size, dtype=torch.float64) + 0.5) * (trained / size) - 0.5
    return sinusoids(middles, features).roll(
        features // 2, dims=-1
    )  # sines first here, cosines first for times
