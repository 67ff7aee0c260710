"""The layers of a block and their modern variants: norm, attention, MLP. One file of choices.

    plain                 LayerNorm, fixed sin-cos positions alone, GELU MLP (2212.09748)
    + rmsnorm             RMSNorm (1910.07467) instead of LayerNorm, with a learned scale
    + rope                queries and keys turned by their 2-D position (2104.09864), beside sin-cos
    + qknorm              RMSNorm of queries and keys (2302.05442)
    + swiglu              SwiGLU (2002.05202) at the parameters of the GELU MLP
    + heads64             heads of 64 features, whatever the size says
    + nobias              no biases in attention, cross-attention and MLP
    modern                the first five (LightningDiT 2501.01423, JiT 2511.13720)

B images, T tokens, D features of a token, h heads of d = D / h features.
"""

import dataclasses
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from timm.layers import GluMlp, Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from dit.errors import UserError, did_you_mean
from dit.models.embeddings import axial_rotation

HEAD_SIZE = 64  # of heads64, the size that attention kernels are made for
EPS = 1e-6


@dataclass(frozen=True)
class BlockLayers:
    """Which layers a block is made of; one switch a variant."""

    rmsnorm: bool = False
    rope: bool = False
    qknorm: bool = False
    swiglu: bool = False
    heads64: bool = False
    nobias: bool = False

    def __str__(self) -> str:
        """Return the switches that are on, such as `rope, qknorm`."""
        return ", ".join(name for name in SWITCHES if getattr(self, name))

    @property
    def spec(self) -> str:
        """Return the text that `parse_layers` reads as these layers, with the fewest switches."""
        texts = [name + self._changes(base) for name, base in BASES.items()]
        return min(texts, key=lambda text: text.count("+") + text.count("-"))

    def _changes(self, base: "BlockLayers") -> str:
        """Return the switches that turn the base into these layers, such as `-qknorm+nobias`."""
        changes = ""
        for name in SWITCHES:
            wanted = getattr(self, name)
            if wanted != getattr(base, name):
                changes += f"{'+' if wanted else '-'}{name}"
        return changes

    def num_heads(self, hidden_size: int, num_heads: int) -> int:
        """Return the number of heads of a block."""
        return max(1, hidden_size // HEAD_SIZE) if self.heads64 else num_heads

    def norm(self, hidden_size: int, affine: bool) -> nn.Module:
        """Return a norm of tokens.

        Args:
            affine: whether LayerNorm learns a scale and a shift. RMSNorm always has a scale, as in
                LightningDiT and JiT, also where adaLN gives another one.
        """
        if self.rmsnorm:
            return RMSNorm(hidden_size)
        return nn.LayerNorm(hidden_size, eps=EPS, elementwise_affine=affine)

    def attention(self, hidden_size: int, num_heads: int) -> "SelfAttention":
        """Return self-attention."""
        return SelfAttention(
            hidden_size,
            num_heads,
            qkv_bias=not self.nobias,
            proj_bias=not self.nobias,
            qk_norm=self.qknorm,
            norm_layer=RMSNorm,
        )

    def mlp(self, hidden_size: int) -> nn.Module:
        """Return the MLP."""
        bias = not self.nobias
        if self.swiglu:
            # the gated half comes first: silu(W1 x) * W2 x
            width = 2 * swiglu_width(hidden_size)
            return GluMlp(hidden_size, width, act_layer=nn.SiLU, bias=bias, gate_last=False)
        gelu: Any = partial(nn.GELU, approximate="tanh")
        return Mlp(hidden_size, 4 * hidden_size, act_layer=gelu, bias=bias)

    def rotation(
        self, head_size: int, grid: tuple[int, int], trained: tuple[int, int] | None = None
    ) -> Tensor | None:
        """Return the rotation of each token, see `axial_rotation`; None without rope."""
        return axial_rotation(head_size, grid, trained) if self.rope else None


SWITCHES = [field.name for field in dataclasses.fields(BlockLayers)]
PLAIN = BlockLayers()
MODERN = BlockLayers(rmsnorm=True, rope=True, qknorm=True, swiglu=True, heads64=True)
BASES = {"plain": PLAIN, "modern": MODERN}


def parse_layers(block: str) -> BlockLayers:
    """Read `--block`: plain or modern, then switches: `plain+rope`, `modern-qknorm+nobias`.

    Raises:
        UserError: an unknown name.
    """
    base, *switches = _words(block)
    if base not in BASES:
        raise UserError(f"--block {block}", "plain or modern first", did_you_mean(base, BASES))
    layers = BASES[base]
    for switch in switches:
        name = switch[1:]
        if name not in SWITCHES:
            do = did_you_mean(name, SWITCHES, "such as --block plain+rope")
            if "," in name or " " in name:
                do = "each switch has a + or - of its own, as in --block plain+qknorm+rope"
            raise UserError(
                f"--block {block}", f"+ or - and one of {', '.join(SWITCHES)} after {base}", do
            )
        layers = dataclasses.replace(layers, **{name: switch[0] == "+"})
    return layers


def refuse_idle_switches(block: str) -> None:
    """Refuse switches of `--block` that change nothing; earlier versions saved such settings."""
    before, *switches = _words(block)
    for switch in switches:
        after = before + switch
        if parse_layers(after) == parse_layers(before):
            has = "has" if switch[0] == "+" else "has no"
            raise UserError(
                f"--block {block}",
                "switches that change a layer",
                f"{before} {has} {switch[1:]}: drop {switch}",
            )
        before = after


def _words(block: str) -> list[str]:
    """Return the base and each switch with its sign: `modern`, `-qknorm`, `+nobias`."""
    return re.split(r"(?=[+-])", block)


# -- norm and MLP ----------------------------------------------------------------------------------


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * g over the last axis (1910.07467, equation 4), in float32."""

    eps: float

    def __init__(self, size: int, **device: Any):
        super().__init__(size, eps=EPS, **device)

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        scale = (exact.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        return (exact * scale * self.weight).to(x.dtype)


def swiglu_width(hidden_size: int) -> int:
    """Return 2/3 of a GELU MLP's width, rounded up to a multiple of 8: three matrices for two."""
    width = 2 * 4 * hidden_size // 3
    return -(-width // 8) * 8


# -- attention -------------------------------------------------------------------------------------


class SelfAttention(Attention):
    """timm's multi-head attention, with its names of weights, and rotary positions if given."""

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Map tokens [B, T, D] to [B, T, D].

        Args:
            rotation: cosines and sines, [2, T', d / 2] for all images, or [2, B, 1, T', d / 2]
                where each has its own. Tokens after the first T' are not turned: they have no
                place.
        """
        qkv = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)

        if self.fused_attn:
            x = scaled_dot_product_attention(q, k, v)
        else:
            # the weights are in memory only here: see attention_maps.py
            weights = ((q * self.scale) @ k.mT).softmax(dim=-1)
            x = self.attn_drop(weights) @ v
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring features (a, b) to (a cos - b sin, a sin + b cos): [B, h, T, d]."""
    # tokens without a place: cosine 1, sine 0
    others = x.shape[-2] - rotation.shape[-2]
    cos = pad(rotation[0], (0, 0, 0, others), value=1.0)
    sin = pad(rotation[1], (0, 0, 0, others))
    if is_eager_cpu(x):
        return _rotate_as_complex(x, cos, sin)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def is_eager_cpu(x: Tensor) -> bool:
    """Whether operations on x run one by one on a CPU."""
    return x.is_cpu and not torch.compiler.is_compiling()


def _rotate_as_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (a, b), as the complex number a + b i times cos + i sin: few passes over memory."""
    exact = torch.promote_types(x.dtype, torch.float32)
    turns = torch.complex(cos.to(exact), sin.to(exact))
    pairs = torch.view_as_complex(x.to(exact).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
