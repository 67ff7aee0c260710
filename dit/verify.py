"""Whether the files of latents are as they were written."""

from pathlib import Path

from dit.config import VerifyConfig
from dit.errors import UserError
from dit.hardware import Ranks
from dit.latents.shards import AGAIN, holds_latents
from dit.latents.store import damaged_shards, read_index


def verify(config: VerifyConfig, ranks: Ranks) -> None:
    """Print what is damaged in a folder of latents, or that nothing is.

    Raises:
        UserError: not such a folder; or something in it is damaged.
    """
    ranks.on_main(lambda: verify_latents(config.path))


def verify_latents(root: Path) -> None:
    """`verify` of a folder of latents."""
    if not holds_latents(root):
        raise UserError(f"{root} is not a folder of latents", "a folder written by `dit encode`",
                        "check the path; `dit info` tells whether runs and weights are intact")
    index, damaged = read_index(root), damaged_shards(root)
    for damage in damaged:
        print(f"damaged  {root / damage.file}  {damage.images:,} images  {damage.reason}")
    if damaged:
        names = ", ".join(damage.file for damage in damaged[:5]) + (", …" if len(damaged) > 5 else "")
        raise UserError(f"{len(damaged)} files of {root} are damaged: {names}", "what was written",
                        f"{AGAIN}; or train without them: train.py --skip-damaged")
    labels = ", and their labels" if "labels_sha256" in index else ""  # earlier versions did not note it
    print(f"intact   {root}: {len(index['shards']):,} shards with {index['count']:,} images{labels}")
