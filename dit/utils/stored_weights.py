"""The files of an autoencoder's weights in diffusers' layout: one, shards, or other precisions."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from dit.errors import UserError
from dit.utils.files import sha256
from dit.utils.typed_json import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
ANY_WEIGHTS = ("diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.index*.json")
VARIANTS = ("fp32", "fp16", "bf16", "ema")  # of weights, best first; others after them


class ShardIndex(TypedDict):
    """What is read of diffusers' index of shards."""

    weight_map: dict[str, str]  # of each tensor, the file that has it


@dataclass(frozen=True)
class StoredWeights:
    """Weights in a folder of diffusers' layout.

    Args:
        variant: what stands before the ending of the name, such as fp16; None for the usual name.
        listing: the file to name in messages: the weights, or the index of their shards.
        files: one, or all shards.
    """

    variant: str | None
    listing: Path
    files: list[Path]

    @property
    def checksum(self) -> str:
        """The SHA-256 of the file; of shards, that of their SHA-256."""
        digests = [sha256(file) for file in self.files]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def find_stored_weights(folder: Path) -> StoredWeights:
    """Find weights as diffusers names them: in one file or in shards, also in another precision."""
    stem = WEIGHTS.removesuffix(".safetensors")
    index = rf"{stem}\.safetensors\.index(?:\.(?P<variant>\w+))?\.json"
    single = rf"{stem}(?:\.(?P<variant>\w+))?\.safetensors"
    found: dict[str | None, StoredWeights] = {}
    for pattern in (index, single):
        for file in sorted(folder.iterdir()):
            if match := re.fullmatch(pattern, file.name):
                variant = match["variant"]
                files = _shards(file) if pattern is index else [file]
                found[variant] = StoredWeights(variant, file, files)
    if not found:
        others = sorted(
            file.name for file in folder.iterdir() if not file.name.startswith((".", "config"))
        )
        has = f", which has {', '.join(others[:5])}" if others else ""
        raise UserError(
            f"no {WEIGHTS} in {folder}{has}",
            "weights in safetensors format",
            "copy that file there; pickled .bin weights are not read",
        )

    order = [None, *VARIANTS]

    def rank(variant: str | None) -> tuple[int, str]:
        place = order.index(variant) if variant in order else len(order)
        return place, variant or ""

    return found[min(found, key=rank)]


def _shards(index: Path) -> list[Path]:
    """Return the files that an index of shards names; refuse one that is missing."""
    do = "copy the autoencoder again"
    files = read_json(index, ShardIndex, "diffusers' index of shards", do)["weight_map"]
    shards = [index.parent / Path(name).name for name in sorted(set(files.values()))]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"no {shard.name} in {index.parent}", f"all files of {index.name}", do)
    return shards
