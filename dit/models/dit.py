"""The Diffusion Transformer (arXiv 2212.09748) with the state-dict names and shapes of its original release."""

from typing import Any

from einops import rearrange
from timm.layers import PatchEmbed, to_2tuple
from torch import Tensor, nn

from dit.errors import UserError, nearest
from dit.models.layers import DiTBlock, FinalLayer, LabelEmbedder, TimestepEmbedder, position_embedding

SIZES: dict[str, dict[str, Any]] = {
    "Ti": dict(depth=6, hidden_size=256, num_heads=4),
    "S": dict(depth=12, hidden_size=384, num_heads=6),
    "B": dict(depth=12, hidden_size=768, num_heads=12),
    "L": dict(depth=24, hidden_size=1024, num_heads=16),
    "XL": dict(depth=28, hidden_size=1152, num_heads=16),
}
PATCHES = (1, 2, 4, 8)
NAMES = [f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES]


class DiT(nn.Module):
    """Patches of a noisy latent, through adaLN-Zero blocks, to a prediction of the latent's shape.

    Args:
        input_size: of the latent: height and width, or one number for both.
        patch_size: height and width of a patch.
        in_channels: channels of the latent.
        hidden_size: features of a token.
        depth: number of blocks.
        num_heads: attention heads.
        num_classes: classes; one more embedding is the null class, id `num_classes`.
        learn_sigma: twice the output channels, the second half for the variance.
    """

    def __init__(
        self, *, input_size: int | tuple[int, int], patch_size: int, in_channels: int, hidden_size: int, depth: int,
        num_heads: int, num_classes: int, learn_sigma: bool = False, conditioning: str = "adaln-zero",
        text_width: int | None = None,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.grid = self._grid(input_size)
        self.x_embedder = PatchEmbed(None, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.pos_embed = nn.Parameter(position_embedding(hidden_size, self.grid)[None], requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size, in_channels * (2 if learn_sigma else 1))
        self.init_weights()

    def init_weights(self) -> None:
        """All initial weights (2212.09748, section 3.2 and the release); each parameter falls under one rule."""
        for name, parameter in self.named_parameters():
            if name.endswith(".bias") or ".adaLN_modulation." in name or name == "final_layer.linear.weight":
                nn.init.zeros_(parameter)  # adaLN-Zero: a fresh block is the identity, a fresh network says zero
            elif name.startswith(("t_embedder.", "y_embedder.")):
                nn.init.normal_(parameter, std=0.02)
            elif name != "pos_embed":
                nn.init.xavier_uniform_(parameter.flatten(1))  # flat, so that the patch convolution counts as linear

    def _grid(self, input_size: int | tuple[int, int]) -> tuple[int, int]:
        """Tokens along each axis."""
        height, width = to_2tuple(input_size)
        if height % self.patch_size or width % self.patch_size:
            raise UserError(f"latents of {height} x {width} with patch size {self.patch_size}",
                            "a patch size that divides the latents", "change --model or --image-size")
        return height // self.patch_size, width // self.patch_size

    def resize(self, input_size: int | tuple[int, int]) -> None:
        """Take latents of another size: the positions of training are stretched over them."""
        positions = position_embedding(self.pos_embed.shape[-1], self._grid(input_size), self.grid)
        self.pos_embed = nn.Parameter(positions[None].to(self.pos_embed), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Noisy latents [B, C, H, W], times [B], class ids [B] -> [B, C or 2C, H, W]."""
        h = x.shape[-2] // self.patch_size
        x = self.x_embedder(x) + self.pos_embed  # [B, T, D]
        c = self.t_embedder(t) + self.y_embedder(y)  # [B, D]
        for block in self.blocks:
            x = block(x, c)
        p = self.patch_size
        return rearrange(self.final_layer(x, c), "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p)


def split_name(name: str) -> tuple[str, int]:
    """Size and patch of a name: `DiT-S/4` -> (`S`, 4).

    Raises:
        UserError: unknown, with the nearest names.
    """
    if name not in NAMES:
        raise UserError(f"unknown model {name!r}", f"DiT-{{{','.join(SIZES)}}}/{{{','.join(map(str, PATCHES))}}}",
                        nearest(name, NAMES))
    size, patch = name.removeprefix("DiT-").split("/")
    return size, int(patch)
