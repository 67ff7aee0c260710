"""A classifier of noisy latents, for classifier guidance (2105.05233, section 4)."""

from torch import Tensor, nn

from dit.errors import UserError
from dit.models.dit import PATCHES, SIZES, Condition, DiTBlock, PatchTransformer

NAMES = [f"Classifier-{size}/{patch}" for size in SIZES for patch in PATCHES]


class Classifier(PatchTransformer):
    """Patches of a noisy latent, through adaLN-Zero blocks that hear of the time alone, to a score for each class.

    Args:
        num_classes: two or more; the others as of `DiT`.

    Raises:
        UserError: fewer classes, or a patch that does not divide the latent.
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
    ):
        if num_classes < 2:
            raise UserError(
                f"a classifier of {num_classes} class{'es' * (num_classes != 1)}",
                "2 classes or more",
                "train it on data with classes",
            )
        super().__init__(
            input_size=input_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
        )
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.head = nn.Linear(hidden_size, num_classes)
        self.init_weights()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy latents [B, C, H, W], times [B] -> logits [B, num_classes]."""
        x, time = self.tokens(x), self.t_embedder(t)
        for block in self.blocks:
            x = block(x, Condition(time, time[:, None]))
        return self.head(self.norm(x).mean(dim=1))
