"""A classifier of noisy latents, for classifier guidance (2105.05233, section 4)."""

from typing import Any

from torch import Tensor, nn

from dit.errors import UserError
from dit.models.dit import DiTBlock, PatchTransformer
from dit.models.embeddings import Condition
from dit.models.initial_weights import init_weights
from dit.models.sizes import PATCHES, SIZES

NAMES = [f"Classifier-{size}/{patch}" for size in SIZES for patch in PATCHES]


class Classifier(PatchTransformer):
    """Noisy latents and times to class logits: DiT's blocks, conditioned on time, then a mean.

    Args:
        depth: number of blocks.
        num_heads: attention heads of a block.
        num_classes: two or more.
        sizes: see `PatchTransformer`.
    """

    def __init__(self, *, depth: int, num_heads: int, num_classes: int, **sizes: Any):
        if num_classes < 2:
            raise UserError(
                f"a classifier of {num_classes} class{'es' * (num_classes != 1)}",
                "2 classes or more",
                "train it on data with classes",
            )
        super().__init__(**sizes)
        hidden_size = sizes["hidden_size"]
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.head = nn.Linear(hidden_size, num_classes)
        init_weights(self)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map noisy latents [B, C, H, W] and times [B] to logits [B, num_classes]."""
        tokens = self.embed_patches(x)
        time = self.t_embedder(t)
        # conditioned on time alone: the class is what it predicts
        for block in self.blocks:
            tokens = block(tokens, Condition(time))
        return self.head(self.norm(tokens).mean(dim=1))
