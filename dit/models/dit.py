"""The Diffusion Transformer, DiT (2212.09748), with the state-dict names and shapes of its release.

    noisy latents x [B, C, H, W] -> patches -> tokens [B, T, D] -> blocks -> final layer
    times t [B], class ids y [B] -> condition [B, D], read by every block and the final layer
    final layer -> patches -> prediction [B, C or 2C, H, W]

B images; T tokens, one a patch; D features of a token; p the side of a patch: T = H/p * W/p.
"""

import torch
from einops import rearrange
from timm.layers import PatchEmbed
from torch import Tensor, nn

from dit.models.embeddings import (
    Condition,
    LabelEmbedder,
    TimestepEmbedder,
    position_embedding,
    text_mask,
    time_and_class,
)
from dit.models.initial_weights import init_weights
from dit.models.layers import PLAIN, BlockLayers
from dit.models.parts import Parts, early_block
from dit.models.routing import run_blocks, run_routed
from dit.models.sizes import grid_of


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Block(nn.Module):
    """The layers that all kinds of block share; `forward` maps tokens [B, T, D] to [B, T, D]."""

    affine = True  # whether the norms learn a scale and a shift
    in_context = False  # whether the condition's tokens are appended to those of the image
    context: type[nn.Module] | None = None  # from time and class to a Condition of its own

    def __init__(self, hidden_size: int, num_heads: int, layers: BlockLayers = PLAIN):
        super().__init__()
        self.norm1 = layers.norm(hidden_size, self.affine)
        self.attn = layers.attention(hidden_size, num_heads)
        self.norm2 = layers.norm(hidden_size, self.affine)
        self.mlp = layers.mlp(hidden_size)


class DiTBlock(Block):
    """A block with adaLN-Zero: the condition gives shift, scale and gate (section 3.2)."""

    affine = False

    def __init__(self, hidden_size: int, num_heads: int, layers: BlockLayers = PLAIN):
        super().__init__(hidden_size, num_heads, layers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        modulation = self.adaLN_modulation(c.vector)[:, None]  # [B, 1, 6D]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)

        # gates start at zero, so that a fresh block is the identity
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), c.rotation)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens [B, T, D] to patches [B, T, p * p * C], after a last adaptive norm."""

    def __init__(
        self, hidden_size: int, patch_size: int, out_channels: int, layers: BlockLayers = PLAIN
    ):
        super().__init__()
        self.norm_final = layers.norm(hidden_size, affine=False)
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        shift, scale = self.adaLN_modulation(c.vector)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PatchTransformer(nn.Module):
    """What DiT and the noisy classifier share: embeddings of patches, positions and times.

    A subclass adds blocks and last layer, and calls `init_weights` at the end.
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
        self.grid = grid_of(input_size, patch_size)
        self.x_embedder = PatchEmbed(None, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        positions = position_embedding(hidden_size, self.grid)
        self.pos_embed = nn.Parameter(positions[None], requires_grad=False)

    def embed_patches(self, x: Tensor) -> Tensor:
        """Map noisy latents [B, C, H, W] to tokens [B, T, D]."""
        return self.x_embedder(x) + self.pos_embed

    def resize(self, input_size: int | tuple[int, int]) -> None:
        """Accept latents of another size, over which the grid of training is stretched."""
        features = self.pos_embed.shape[-1]
        grid = grid_of(input_size, self.patch_size)
        positions = position_embedding(features, grid, self.grid)
        self.pos_embed = nn.Parameter(positions[None].to(self.pos_embed), requires_grad=False)


class DiT(PatchTransformer):
    """The network: noisy latents, times and conditions to a prediction [B, C or 2C, H, W].

    Args:
        input_size: height and width of the latents, or one number for both.
        patch_size: height and width of a patch.
        in_channels: channels of the latents.
        hidden_size: features of a token.
        depth: number of blocks.
        num_heads: attention heads of a block.
        num_classes: classes; one more embedding is the null class, id `num_classes`.
        learn_sigma: twice the output channels, the second half for the variance.
        layers: of the blocks; those of the paper unless given.
        block, final_layer: how the network is conditioned; adaLN-Zero unless given.
        text_width: features of a text token, for a network of text instead of classes.
        inner_head: whether there is a second last layer, after an early block (see parts.py).
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
        layers: BlockLayers = PLAIN,
        block: type[Block] = DiTBlock,
        final_layer: type[nn.Module] = FinalLayer,
        text_width: int | None = None,
        inner_head: bool = False,
    ):
        super().__init__(
            input_size=input_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
        )
        self.text_width = text_width
        self.in_context = block.in_context
        self.context = block.context(hidden_size) if block.context else time_and_class
        out_channels = 2 * in_channels if learn_sigma else in_channels

        if text_width:
            self.y_embedder: nn.Module = nn.Linear(text_width, hidden_size)
        else:
            self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.blocks = nn.ModuleList(block(hidden_size, num_heads, layers) for _ in range(depth))
        last = (hidden_size, patch_size, out_channels, layers)
        self.final_layer = final_layer(*last)
        self.inner_final_layer = final_layer(*last) if inner_head else None
        self.layers = layers
        self.head_size = hidden_size // num_heads
        rotation = layers.rotation(self.head_size, self.grid)
        self.register_buffer("rotation", rotation, persistent=False)
        init_weights(self)

    def resize(self, input_size: int | tuple[int, int]) -> None:
        super().resize(input_size)
        grid = grid_of(input_size, self.patch_size)
        rotation = self.layers.rotation(self.head_size, grid, self.grid)
        self.rotation = None if rotation is None else rotation.to(self.pos_embed)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, keep: Tensor | None = None, parts: bool = False
    ) -> Tensor | Parts:
        """Predict [B, C or 2C, H, W] from latents, times [B] and class ids [B] or text.

        Args:
            keep: tokens [B, K] that do not skip the middle blocks, in training; all unless given.
            parts: return what an early block knows too.
        """
        tokens, c = self.embed(x, t, y)
        blocks, places = list(self.blocks), self.pos_embed.shape[1]
        tap = early_block(len(blocks)) if parts else 0
        if keep is None:
            tokens, early = run_blocks(blocks, tokens, c, tap)
        else:
            tokens, early = run_routed(blocks, tokens, c, keep, places, tap)
        out = self.unpatchify(tokens, c, x)
        if early is None:
            return out
        head = self.inner_final_layer
        inner = self.unpatchify(early, c, x, head) if head else None
        return Parts(out, inner, early[:, :places])

    def embed(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Condition]:
        """Return what the blocks read: tokens [B, T, D] and the condition."""
        tokens = self.embed_patches(x)
        c = self.condition(t, y)._replace(rotation=self.rotation)
        if self.in_context:
            assert c.tokens is not None
            # [B, T + S, D]: `unpatchify` drops them again
            tokens = torch.cat([tokens, c.tokens], dim=1)
        return tokens, c

    def condition(self, t: Tensor, y: Tensor) -> Condition:
        """Embed times [B] and class ids [B], or times and text [B, S, text_width]."""
        time = self.t_embedder(t)
        label = self.y_embedder(y)
        if self.text_width:
            return Condition(time, label, text_mask(y))
        return self.context(time, label)

    def unpatchify(
        self, tokens: Tensor, c: Condition, x: Tensor, head: nn.Module | None = None
    ) -> Tensor:
        """Map a block's tokens to patches by a last layer, these to latents of the size of x."""
        p = self.patch_size
        h, w = x.shape[-2] // p, x.shape[-1] // p
        patches = (head or self.final_layer)(tokens[:, : h * w], c)  # [B, T, p * p * C]
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p)
