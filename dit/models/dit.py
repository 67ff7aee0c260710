"""The Diffusion Transformer (arXiv 2212.09748) with the state-dict names and shapes of its original release."""

from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from timm.layers import Mlp, PatchEmbed, to_2tuple
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from dit.errors import UserError
from dit.models.embeddings import LabelEmbedder, TimestepEmbedder, position_embedding


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

    def forward(
        self, x: Tensor, c: Condition
    ) -> Tensor:  # [B, T, D] -> [B, T, D], as in all blocks
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class AdaLNBlock(Block):
    """Shift and scale of both norms are regressed from the condition's vector (adaLN)."""

    affine = False
    regressed = 4

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__(hidden_size, num_heads)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden_size, self.regressed * hidden_size)
        )

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift1, scale1, shift2, scale2 = self.adaLN_modulation(c.vector)[:, None].chunk(4, dim=-1)
        x = x + self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiTBlock(AdaLNBlock):
    """So is a gate on attention and MLP, which starts at zero (adaLN-Zero): a fresh block is the identity."""

    regressed = 6

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c.vector)[
            :, None
        ].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


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


class PatchTransformer(nn.Module):
    """The entrance of a transformer on latents; blocks and exit are its heirs', who call `init_weights` at the end.

    Args:
        input_size: of the latent: height and width, or one number for both.
        patch_size: height and width of a patch.
        in_channels: channels of the latent.
        hidden_size: features of a token.

    Raises:
        UserError: a patch that does not divide the latent.
    """

    def __init__(
        self,
        *,
        input_size: int | tuple[int, int],
        patch_size: int,
        in_channels: int,
        hidden_size: int,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.grid = self._grid(input_size)
        self.x_embedder = PatchEmbed(None, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.pos_embed = nn.Parameter(
            position_embedding(hidden_size, self.grid)[None], requires_grad=False
        )

    def init_weights(self) -> None:
        """All initial weights (2212.09748, section 3.2 and the release); each parameter falls under one rule."""
        for name, parameter in self.named_parameters():
            if name.endswith(
                ZERO
            ):  # adaLN-Zero: a fresh block is the identity, a fresh network says zero
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)  # scale of a norm that is not adaptive
            elif name.startswith(("t_embedder.", "y_embedder.")):
                nn.init.normal_(parameter, std=0.02)
            elif name != "pos_embed":
                nn.init.xavier_uniform_(
                    parameter.flatten(1)
                )  # flat, so that the patch convolution counts as linear

    def tokens(self, x: Tensor) -> Tensor:
        """Noisy latents [B, C, H, W] -> patches in their positions [B, T, D]."""
        return self.x_embedder(x) + self.pos_embed

    def _grid(self, input_size: int | tuple[int, int]) -> tuple[int, int]:
        """Tokens along each axis."""
        height, width = to_2tuple(input_size)
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"latents of {height} x {width} with patch size {self.patch_size}",
                "a patch size that divides the latents",
                "change --model or --image-size",
            )
        return height // self.patch_size, width // self.patch_size

    def resize(self, input_size: int | tuple[int, int]) -> None:
        """Take latents of another size: the positions of training are stretched over them."""
        positions = position_embedding(self.pos_embed.shape[-1], self._grid(input_size), self.grid)
        self.pos_embed = nn.Parameter(positions[None].to(self.pos_embed), requires_grad=False)


ZERO = (
    ".bias",
    ".adaLN_modulation.1.weight",
    ".text_attn.proj.weight",
    "final_layer.linear.weight",
    "head.weight",
)

SIZES: dict[str, dict[str, Any]] = {
    "Ti": dict(depth=6, hidden_size=256, num_heads=4),
    "S": dict(depth=12, hidden_size=384, num_heads=6),
    "B": dict(depth=12, hidden_size=768, num_heads=12),
    "L": dict(depth=24, hidden_size=1024, num_heads=16),
    "XL": dict(depth=28, hidden_size=1152, num_heads=16),
    "1B": dict(depth=24, hidden_size=1536, num_heads=12),  # from here on not the paper's
    "3B": dict(depth=32, hidden_size=2304, num_heads=18),
    "7B": dict(depth=40, hidden_size=3072, num_heads=24),
}
PATCHES = (1, 2, 4, 8)


class DiT(PatchTransformer):
    """Patches of a noisy latent, through blocks that hear of time and class, to a prediction of the latent's shape.

    Args:
        input_size: of the latent: height and width, or one number for both.
        patch_size: height and width of a patch.
        in_channels: channels of the latent.
        hidden_size: features of a token.
        depth: number of blocks.
        num_heads: attention heads.
        num_classes: classes; one more embedding is the null class, id `num_classes`.
        learn_sigma: twice the output channels, the second half for the variance.
        conditioning: how blocks hear of time and class, or of time and text (`blocks.CONDITIONINGS`).
        text_width: features of a token of text, with `conditioning="text"`.
    """

    def __init__(
        self,
        *,
        input_size: int | tuple[int, int],
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        learn_sigma: bool = False,
        conditioning: str = "adaln-zero",
        text_width: int | None = None,
    ):
        super().__init__(
            input_size=input_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
        )
        assert (conditioning == "text") == (text_width is not None)
        from dit.models.conditioning import CONDITIONINGS

        block, final_layer = CONDITIONINGS[conditioning]
        self.conditioning = conditioning
        self.y_embedder = (
            nn.Linear(text_width, hidden_size)
            if text_width
            else LabelEmbedder(num_classes, hidden_size)
        )
        self.blocks = nn.ModuleList(block(hidden_size, num_heads) for _ in range(depth))
        self.final_layer = final_layer(
            hidden_size, patch_size, in_channels * (2 if learn_sigma else 1)
        )
        self.init_weights()

    def condition(self, t: Tensor, y: Tensor) -> Condition:
        """Times and class ids, or times and text, as vectors and as sequences of tokens."""
        time, told = self.t_embedder(t), self.y_embedder(y)
        if self.conditioning == "text":
            return Condition(time, told, words(y))
        return Condition(time + told, torch.stack([time, told], dim=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Noisy latents [B, C, H, W], times [B], class ids [B] or text [B, L, text_width] -> [B, C or 2C, H, W]."""
        tokens, c = self.enter(x, t, y)
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.leave(tokens, c, x)

    def enter(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Condition]:
        """What the blocks get: patches of x [B, T, D], in-context with the condition's tokens; and the condition."""
        tokens, c = self.tokens(x), self.condition(t, y)
        if self.conditioning == "in-context":
            tokens = torch.cat([tokens, c.tokens], dim=1)  # [B, T + 2, D]
        return tokens, c

    def leave(self, tokens: Tensor, c: Condition, x: Tensor) -> Tensor:
        """What the last block gives, as the prediction for x: [B, C or 2C, H, W]."""
        p = self.patch_size
        h, w = x.shape[-2] // p, x.shape[-1] // p
        patches = self.final_layer(tokens[:, : h * w], c)  # [B, T, p * p * C]
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p)


def words(text: Tensor) -> Tensor:
    """Tokens of text [B, L, E] that count, bool [B, L]: all but those of zeros, which are padding, and the first."""
    return text.any(dim=-1) | (torch.arange(text.shape[1], device=text.device) == 0)
