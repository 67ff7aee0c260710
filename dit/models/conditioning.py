"""Other ways to condition the blocks than adaLN-Zero (2212.09748, section 3.2 and figure 3).

B images, T tokens of an image, S tokens of a condition, D features.
"""

import torch
from einops import rearrange
from timm.layers import use_fused_attn
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dit.models.dit import Block, DiTBlock, FinalLayer, modulate
from dit.models.embeddings import Condition
from dit.models.layers import PLAIN, BlockLayers

TIME_TOKENS, CLASS_TOKENS = 4, 8  # of conditioning `tokens` (2512.02012, appendix A)


class InContextBlock(Block):
    """A plain ViT block; time and class are two more tokens of self-attention."""

    in_context = True

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        x = x + self.attn(self.norm1(x), c.rotation)
        return x + self.mlp(self.norm2(x))


class LearnedContext(nn.Module):
    """Time and class as several tokens, each with a learned vector of its own (2512.02012)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(TIME_TOKENS + CLASS_TOKENS, hidden_size))

    def forward(self, time: Tensor, label: Tensor) -> Condition:
        """Map time and class, each [B, D], to their sum and tokens [B, 12, D]."""
        times = time[:, None].expand(-1, TIME_TOKENS, -1)
        classes = label[:, None].expand(-1, CLASS_TOKENS, -1)
        return Condition(time + label, self.tokens + torch.cat([times, classes], dim=1))


class TokenBlock(Block):
    """In-context conditioning without adaLN: vector gates at zero instead (2512.02012, figure 4).

    It has a third fewer parameters than adaLN-Zero.
    """

    in_context = True
    context = LearnedContext

    def __init__(self, hidden_size: int, num_heads: int, layers: BlockLayers = PLAIN):
        super().__init__(hidden_size, num_heads, layers)
        self.gate1 = nn.Parameter(torch.zeros(hidden_size))
        self.gate2 = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        x = x + self.gate1 * self.attn(self.norm1(x), c.rotation)
        return x + self.gate2 * self.mlp(self.norm2(x))


class CrossAttentionBlock(Block):
    """Between self-attention and MLP, attends to the tokens of time and class."""

    def __init__(self, hidden_size: int, num_heads: int, layers: BlockLayers = PLAIN):
        super().__init__(hidden_size, num_heads, layers)
        self.norm_cross = layers.norm(hidden_size, affine=True)
        self.cross_attn = CrossAttention(hidden_size, num_heads, bias=not layers.nobias)

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        x = x + self.attn(self.norm1(x), c.rotation)
        # two tokens without a mask: time and class
        x = x + self.cross_attn(self.norm_cross(x), c.tokens)
        return x + self.mlp(self.norm2(x))


class AdaLNBlock(Block):
    """adaLN-Zero without the gates: the condition gives shift and scale."""

    affine = False

    def __init__(self, hidden_size: int, num_heads: int, layers: BlockLayers = PLAIN):
        super().__init__(hidden_size, num_heads, layers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 4 * hidden_size))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        modulation = self.adaLN_modulation(c.vector)[:, None]
        shift1, scale1, shift2, scale2 = modulation.chunk(4, dim=-1)
        x = x + self.attn(modulate(self.norm1(x), shift1, scale1), c.rotation)
        return x + self.mlp(modulate(self.norm2(x), shift2, scale2))


class SharedModulation(nn.Module):
    """One projection of time + class to shifts, scales and gates of all blocks (PixArt)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, time: Tensor, label: Tensor) -> Condition:
        """Map time and class, each [B, D], to their sum and its modulation [B, 6, D]."""
        vector = time + label
        return Condition(vector, modulation=self.modulation(vector).unflatten(1, (6, -1)))


class AdaLNSingleBlock(Block):
    """adaLN-single: one modulation for all blocks, plus a table of each (2310.00426, section 2.3).

    Unlike with adaLN-Zero, a fresh block is not the identity: tables start at N(0, 1/D).
    """

    affine = False
    context = SharedModulation

    def __init__(self, hidden_size: int, num_heads: int, layers: BlockLayers = PLAIN):
        super().__init__(hidden_size, num_heads, layers)
        self.adaLN_table = nn.Parameter(torch.empty(6, hidden_size))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        assert c.modulation is not None
        modulation = c.modulation + self.adaLN_table  # [B, 6, D]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), c.rotation)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class AdaLNSingleFinalLayer(nn.Module):
    """Tokens [B, T, D] to patches [B, T, p * p * C]; shift and scale are time + class plus a table.

    That is PixArt's last layer, without a matrix.
    """

    def __init__(
        self, hidden_size: int, patch_size: int, out_channels: int, layers: BlockLayers = PLAIN
    ):
        super().__init__()
        self.norm_final = layers.norm(hidden_size, affine=False)
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self.adaLN_table = nn.Parameter(torch.empty(2, hidden_size))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift, scale = (c.vector[:, None] + self.adaLN_table).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class TextBlock(DiTBlock):
    """Time by adaLN-Zero, text by cross-attention (PixArt, 2310.00426, figure 4)."""

    def __init__(self, hidden_size: int, num_heads: int, layers: BlockLayers = PLAIN):
        super().__init__(hidden_size, num_heads, layers)
        self.text_attn = CrossAttention(hidden_size, num_heads, bias=not layers.nobias)

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        modulation = self.adaLN_modulation(c.vector)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)

        # the text branch has neither norm nor gate: its projection starts at zero
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), c.rotation)
        x = x + self.text_attn(x, c.tokens, c.mask)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class PlainFinalLayer(nn.Module):
    """Tokens [B, T, D] to patches [B, T, p * p * C], after a norm that is not adaptive."""

    def __init__(
        self, hidden_size: int, patch_size: int, out_channels: int, layers: BlockLayers = PLAIN
    ):
        super().__init__()
        self.norm_final = layers.norm(hidden_size, affine=True)
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        return self.linear(self.norm_final(x))


class CrossAttention(nn.Module):
    """Multi-head attention from image to condition tokens; names as in timm's `Attention`."""

    def __init__(self, hidden_size: int, num_heads: int, bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(hidden_size, hidden_size, bias)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size, bias)
        self.proj = nn.Linear(hidden_size, hidden_size, bias)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [B, T, D], [B, S, D] to [B, T, D]; bool mask [B, S], true at one token or more."""
        q, k, v = self.heads(x, tokens)
        if self.fused_attn:
            x = scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        else:
            # the weights are in memory only here: see attention_maps.py
            x = self.weights(q, k, mask) @ v
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))

    def heads(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, h, T, d], keys and values [B, h, S, d]."""
        q = rearrange(self.q(x), "b t (h d) -> b h t d", h=self.num_heads)
        k, v = rearrange(self.kv(tokens), "b s (two h d) -> two b h s d", two=2, h=self.num_heads)
        return q, k, v

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return softmax(q k^T / sqrt(d)), [B, h, T, S] (1706.03762, equation 1)."""
        scores = q * q.shape[-1] ** -0.5 @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        return scores.softmax(dim=-1)


CONDITIONINGS: dict[str, tuple[type[Block], type[nn.Module]]] = {
    "adaln-zero": (DiTBlock, FinalLayer),
    "adaln": (AdaLNBlock, FinalLayer),
    "adaln-single": (AdaLNSingleBlock, AdaLNSingleFinalLayer),
    "cross-attention": (CrossAttentionBlock, PlainFinalLayer),
    "in-context": (InContextBlock, PlainFinalLayer),
    "tokens": (TokenBlock, PlainFinalLayer),
    "text": (TextBlock, FinalLayer),
}
