"""What networks on patches share: patches, times, positions, initial weights."""

from timm.layers import PatchEmbed, to_2tuple
from torch import Tensor, nn

from dit.errors import UserError
from dit.models.layers import TimestepEmbedder, position_embedding

ZERO = (".bias", ".adaLN_modulation.1.weight", ".text_attn.proj.weight", "final_layer.linear.weight", "head.weight")


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

    def __init__(self, *, input_size: int | tuple[int, int], patch_size: int, in_channels: int, hidden_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.grid = self._grid(input_size)
        self.x_embedder = PatchEmbed(None, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.pos_embed = nn.Parameter(position_embedding(hidden_size, self.grid)[None], requires_grad=False)

    def init_weights(self) -> None:
        """All initial weights (2212.09748, section 3.2 and the release); each parameter falls under one rule."""
        for name, parameter in self.named_parameters():
            if name.endswith(ZERO):  # adaLN-Zero: a fresh block is the identity, a fresh network says zero
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)  # scale of a norm that is not adaptive
            elif name.startswith(("t_embedder.", "y_embedder.")):
                nn.init.normal_(parameter, std=0.02)
            elif name != "pos_embed":
                nn.init.xavier_uniform_(parameter.flatten(1))  # flat, so that the patch convolution counts as linear

    def tokens(self, x: Tensor) -> Tensor:
        """Noisy latents [B, C, H, W] -> patches in their positions [B, T, D]."""
        return self.x_embedder(x) + self.pos_embed

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
