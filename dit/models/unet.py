"""The baseline of DiT: a U-Net of convolutions and attention (2006.11239, appendix B)."""

from typing import Any

from timm.layers import to_2tuple
from torch import Tensor, nn

from dit.errors import UserError
from dit.models.embeddings import LabelEmbedder

SIZES: dict[str, dict[str, Any]] = {
    "S": dict(block_out_channels=(64, 128, 128), layers_per_block=1, attention_sides=(4, 8, 16)),
    "B": dict(block_out_channels=(128, 256, 256, 256), layers_per_block=2, attention_sides=(16,)),
}
NAMES = [f"UNet-{size}" for size in SIZES]


def side_multiple(size: str) -> int:
    """Return what both sides must be multiples of, for the levels to halve them."""
    return 2 ** (len(SIZES[size]["block_out_channels"]) - 1)


class UNet(nn.Module):
    """diffusers' `UNet2DModel`, called as a DiT; each ResNet block adds the embedded time + class.

    Args:
        input_size: of the image or latent: height and width, or one number for both.
        in_channels: channels of the image or latent.
        num_classes: classes; one more embedding is the null class, id `num_classes`.
        learn_sigma: twice the output channels, the second half for the variance.
        block_out_channels: features at each level, multiples of 32; a level halves the sides.
        layers_per_block: ResNet blocks at each level on the way down; one more on the way up.
        attention_sides: levels whose shorter side is one of these have self-attention.
    """

    def __init__(
        self,
        *,
        input_size: int | tuple[int, int],
        in_channels: int,
        num_classes: int,
        learn_sigma: bool = False,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        attention_sides: tuple[int, ...],
    ):
        from diffusers import UNet2DModel

        super().__init__()
        # the lowest level does not halve
        self.halvings = len(block_out_channels) - 1
        self.resize(input_size)
        shorter = min(to_2tuple(input_size))
        self.sides = [shorter >> level for level in range(self.halvings + 1)]

        # the lowest point always has attention
        attends = ["Attn" if side in attention_sides else "" for side in self.sides]
        self.y_embedder = LabelEmbedder(num_classes, 4 * block_out_channels[0])
        self.unet: Any = UNet2DModel(
            in_channels=in_channels,
            out_channels=in_channels * (2 if learn_sigma else 1),
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            # our label embedding is added to the embedded time as it is
            class_embed_type="identity",
            attention_head_dim=32,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in attends),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(attends)),
        )
        self.init_weights()

    @property
    def blocks(self) -> list[nn.Module]:
        """The levels, in the order in which they are called."""
        return [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]

    def init_weights(self) -> None:
        """Set what is not left to diffusers: label embeddings as in DiT, an output of zero."""
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def resize(self, input_size: int | tuple[int, int]) -> None:
        """Accept another size: convolutions do, if the levels can halve it."""
        height, width = to_2tuple(input_size)
        multiple = 2**self.halvings
        if height % multiple or width % multiple:
            raise UserError(
                f"{height} x {width} for a U-Net of {self.halvings + 1} levels",
                f"multiples of {multiple}",
                "change --model or --image-size",
            )

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict [B, C or 2C, H, W] from x [B, C, H, W], times [B] and class ids [B]."""
        return self.unet(x, t, self.y_embedder(y), return_dict=False)[0]
