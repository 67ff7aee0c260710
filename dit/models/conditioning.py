"""Transformer blocks and last layers, for each way to hear of time and class (2212.09748, section 3.2, figure 3).

B images, T tokens, D features, S tokens of a condition.
"""

import torch
from einops import rearrange
from timm.layers import use_fused_attn
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dit.models.dit import (
    AdaLNBlock,
    AdaLNFinalLayer,
    Block,
    Condition,
    DiTBlock,
    FinalLayer,
    modulate,
)


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


class TextBlock(DiTBlock):
    """Time by adaLN-Zero, text by cross-attention, whose projection starts at zero (PixArt, 2310.00426, figure 4)."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__(hidden_size, num_heads)
        self.text_attn = CrossAttention(hidden_size, num_heads)

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c.vector)[
            :, None
        ].chunk(6, dim=-1)
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


CONDITIONINGS: dict[str, tuple[type[Block], type[FinalLayer]]] = {
    "adaln-zero": (DiTBlock, AdaLNFinalLayer),
    "adaln": (AdaLNBlock, AdaLNFinalLayer),
    "cross-attention": (CrossAttentionBlock, FinalLayer),
    "in-context": (Block, FinalLayer),
    "text": (TextBlock, AdaLNFinalLayer),
}
