"""Sizes of a DiT by name, and its patches: `DiT-S/4` has size S and patches of 4 x 4 latents."""

from typing import Any

from timm.layers import to_2tuple

from dit.errors import UserError

PATCHES = (1, 2, 4, 8)
SIZES: dict[str, dict[str, Any]] = {
    # for minutes on a processor
    "Mi": dict(depth=6, hidden_size=128, num_heads=2),
    "Ti": dict(depth=6, hidden_size=256, num_heads=4),
    "S": dict(depth=12, hidden_size=384, num_heads=6),
    "B": dict(depth=12, hidden_size=768, num_heads=12),
    "L": dict(depth=24, hidden_size=1024, num_heads=16),
    "XL": dict(depth=28, hidden_size=1152, num_heads=16),
    # beyond the paper, whose table 1 has S to XL
    "1B": dict(depth=24, hidden_size=1536, num_heads=12),
    "3B": dict(depth=32, hidden_size=2304, num_heads=18),
    "7B": dict(depth=40, hidden_size=3072, num_heads=24),
}


def grid_of(input_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the number of tokens along height and width."""
    height, width = to_2tuple(input_size)
    if height % patch_size or width % patch_size:
        raise UserError(
            f"latents of {height} x {width} with patch size {patch_size}",
            "a patch size that divides the latents",
            "change --model or --image-size",
        )
    return height // patch_size, width // patch_size
