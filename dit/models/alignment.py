"""What alignment adds to a DiT in training: a projector of its tokens, and a teacher's late tokens.

B images, T tokens of an image, D features of a token, E features of the teacher.
"""

from einops import rearrange
from torch import Tensor, nn

from dit.models.dit import DiT
from dit.models.parts import late_block
from dit.models.routing import run_blocks


class Projector(nn.Module):
    """Tokens [B, T, D] to features [B, T, E] by one 3 x 3 convolution (iREPA, 2512.10794).

    Args:
        size: D.
        features: E.
        grid: tokens along height and width, T in all.
    """

    def __init__(self, size: int, features: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(size, features, kernel_size=3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        images = rearrange(tokens, "b (h w) d -> b d h w", h=self.grid[0])
        return rearrange(self.conv(images), "b e h w -> b (h w) e")


def late_tokens(network: DiT, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return the tokens [B, T, D] of the image after a late block; the blocks after it do not run.

    Args:
        x, t, y: as of the network.
    """
    tokens, c = network.embed(x, t, y)
    blocks = list(network.blocks)[: late_block(len(network.blocks))]
    tokens, _ = run_blocks(blocks, tokens, c)
    return tokens[:, : network.pos_embed.shape[1]]
