"""Parts of the Diffusion Transformer (arXiv 2212.09748, section 3). B images, T tokens, D features."""

import math
from functools import partial
from typing import Any

import torch
from einops import rearrange
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
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


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN-Zero: gates start at zero)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(hidden_size, num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        gelu: Any = partial(nn.GELU, approximate="tanh")
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), act_layer=gelu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # [B, T, D], [B, D] -> [B, T, D]
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens to patches, after one more adaptive normalisation."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # [B, T, D], [B, D] -> [B, T, p * p * C]
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The adaptive part of adaptive layer norm."""
    return x * (1 + scale) + shift


def sinusoids(position: Tensor, size: int) -> Tensor:
    """Cosines and sines at geometric frequencies 1 … 1/10000: [N] -> [N, size], in at least float32."""
    half, dtype = size // 2, torch.promote_types(position.dtype, torch.float32)
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=dtype, device=position.device) / half)
    angles = position[:, None].to(dtype) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_embedding(hidden_size: int, grid: tuple[int, int], trained: tuple[int, int] | None = None) -> Tensor:
    """Fixed 2-D sin-cos positions: [h * w, D]; half of the features tell the column, half the row.

    Args:
        grid: (h, w), tokens along each axis.
        trained: the grid that a network learned on, which is stretched over this one: both have the same edges.
    """
    rows, columns = (_axis(size, old, hidden_size // 2) for size, old in zip(grid, trained or grid, strict=True))
    rows, columns = rows[:, None].expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)
    return rearrange(torch.cat([columns, rows], dim=-1), "h w d -> (h w) d").float()


def _axis(size: int, trained: int, features: int) -> Tensor:
    """[size, features] for the middles of `size` tokens on an axis that was `trained` tokens long."""
    middles = (torch.arange(size, dtype=torch.float64) + 0.5) * (trained / size) - 0.5
    return sinusoids(middles, features).roll(features // 2, dims=-1)  # sines first here, cosines first for times
