"""The Diffusion Transformer (arXiv 2212.09748) with the state-dict names and shapes of its original release."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dit.errors import UserError, nearest
from dit.models.blocks import CONDITIONINGS, Condition
from dit.models.layers import LabelEmbedder
from dit.models.transformer import PatchTransformer

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
NAMES = [f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES]


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
        self, *, input_size: int | tuple[int, int], patch_size: int, in_channels: int, hidden_size: int, depth: int,
        num_heads: int, num_classes: int, learn_sigma: bool = False, conditioning: str = "adaln-zero",
        text_width: int | None = None,
    ):
        super().__init__(input_size=input_size, patch_size=patch_size, in_channels=in_channels, hidden_size=hidden_size)
        assert (conditioning == "text") == (text_width is not None)
        block, final_layer = CONDITIONINGS[conditioning]
        self.conditioning = conditioning
        self.y_embedder = nn.Linear(text_width, hidden_size) if text_width else LabelEmbedder(num_classes, hidden_size)
        self.blocks = nn.ModuleList(block(hidden_size, num_heads) for _ in range(depth))
        self.final_layer = final_layer(hidden_size, patch_size, in_channels * (2 if learn_sigma else 1))
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


def split_name(name: str) -> tuple[str, int]:
    """Size and patch of a name: `DiT-S/4` -> (`S`, 4).

    Raises:
        UserError: no DiT, with the nearest names.
    """
    if name not in NAMES:
        raise UserError(f"unknown model {name!r}", f"DiT-{{{','.join(SIZES)}}}/{{{','.join(map(str, PATCHES))}}}",
                        nearest(name, NAMES))
    size, patch = name.removeprefix("DiT-").split("/")
    return size, int(patch)
