"""Transformer blocks and last layers, for each way to hear of time and class (2212.09748, section 3.2, figure 3).

B images, T tokens, D features, S tokens of a condition.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from timm.layers import Mlp, use_fused_attn
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Condition(NamedTuple):
    """Time and class, or time and text; a block takes the part that it is made for."""

    vector: Tensor  # [B, D]
    tokens: Tensor  # [B, S, D]
    mask: Tensor | None = None  # bool [B, S], tokens that count; unless given, all


class Block(nn.Module):
    """A plain ViT block: of a condition it hears what stands among its tokens (in-context)."""

    affine = True  # norms have a scale and shift of their own

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=self.affine)
        self.attn = Attention(hidden_size, num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=self.affine)
        gelu: Any = partial(nn.GELU, approximate="tanh")
        self.mlp = Mlp(hidden_size, 4 * hidden_size, act_layer=gelu)

    def forward(self, x: Tensor, c: Condition) -> Tensor:  # [B, T, D] -> [B, T, D], as in all blocks
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossAttentionBlock(Block):
    """Between self-attention and MLP, attends to the condition's tokens."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__(hidden_size, num_heads)
        self.norm_cross = nn.LayerNorm(hidden_size, eps=1e-6)
        self.cross_attn = CrossAttention(hidden_size, num_heads)

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.cross_attn(self.norm_cross(x), c.tokens)
        return x + self.mlp(self.norm2(x))


class AdaLNBlock(Block):
    """Shift and scale of both norms are regressed from the condition's vector (adaLN)."""

    affine = False
    regressed = 4

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__(hidden_size, num_heads)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, self.regressed * hidden_size))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift1, scale1, shift2, scale2 = self.adaLN_modulation(c.vector)[:, None].chunk(4, dim=-1)
        x = x + self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiTBlock(AdaLNBlock):
    """So is a gate on attention and MLP, which starts at zero (adaLN-Zero): a fresh block is the identity."""

    regressed = 6

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c.vector)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class TextBlock(DiTBlock):
    """Time by adaLN-Zero, text by cross-attention, whose projection starts at zero (PixArt, 2310.00426, figure 4)."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__(hidden_size, num_heads)
        self.text_attn = CrossAttention(hidden_size, num_heads)

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c.vector)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        x = x + self.text_attn(x, c.tokens, c.mask)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to those of a condition, with the names of timm's `Attention`."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D], [B, S, D] -> [B, T, D]; bool mask [B, S]: tokens that count, at least one."""
        q, k, v = self.heads(x, tokens)
        if self.fused_attn:
            x = scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        else:
            x = self.weights(q, k, mask) @ v
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))

    def heads(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, h, T, d], keys and values [B, h, S, d]."""
        q = rearrange(self.q(x), "b t (h d) -> b h t d", h=self.num_heads)
        k, v = rearrange(self.kv(tokens), "b s (two h d) -> two b h s d", two=2, h=self.num_heads)
        return q, k, v

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """Softmax(q k^T / sqrt(d)), [B, h, T, S]; 0 at tokens that do not count."""
        scores = q * q.shape[-1] ** -0.5 @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        return scores.softmax(dim=-1)


class FinalLayer(nn.Module):
    """Tokens to patches, after one more normalisation."""

    affine = True

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=self.affine)
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)

    def forward(self, x: Tensor, c: Condition) -> Tensor:  # [B, T, D] -> [B, T, p * p * C]
        return self.linear(self.norm_final(x))


class AdaLNFinalLayer(FinalLayer):
    """That normalisation is adaptive too."""

    affine = False

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int):
        super().__init__(hidden_size, patch_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift, scale = self.adaLN_modulation(c.vector)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The adaptive part of adaptive layer norm."""
    return x * (1 + scale) + shift


CONDITIONINGS: dict[str, tuple[type[Block], type[FinalLayer]]] = {
    "adaln-zero": (DiTBlock, AdaLNFinalLayer),
    "adaln": (AdaLNBlock, AdaLNFinalLayer),
    "cross-attention": (CrossAttentionBlock, FinalLayer),
    "in-context": (Block, FinalLayer),
    "text": (TextBlock, AdaLNFinalLayer),
}
