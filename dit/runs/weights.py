"""Files of weights: safetensors with the card in the header."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.utils.files import reraise_as_user_error

WEIGHTS = "ema-*.safetensors"


@dataclass(frozen=True)
class Weights:
    """EMA weights with their origin."""

    path: Path
    card: ModelCard
    step: int
    state_dict: dict[str, Tensor]

    @property
    def home(self) -> Path:
        """The run directory that they lie in, or the folder of weights that lie alone."""
        folder = self.path.parent
        return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def write_weights(file: Path, state_dict: dict[str, Tensor], card: ModelCard, step: int) -> None:
    """EMA weights with the card in the header."""
    header = json.dumps({**card.to_json(), "step": step})
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in state_dict.items()}, file, {"dit": header}
    )
    os.umask(umask := os.umask(0))
    file.chmod(0o666 & ~umask)  # safetensors keeps its files private


def read_weights(file: Path) -> Weights:
    """The inverse of `write_weights`.

    Raises:
        UserError: not such a file, or truncated.
    """
    card, step = read_header(file)
    return Weights(file, card, step, load_file(file))


def read_header(file: Path) -> tuple[ModelCard, int]:
    """Card and step of a file of weights; raises as `read_weights`."""
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get("dit")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} can not be read ({error})",
            "a complete .safetensors file of EMA weights",
            "copy it again; a .pt file of the DiT release goes through `dit convert`",
        ) from None
    if header is None:
        raise UserError(
            f"{file} has no network description",
            "EMA weights written by train.py",
            "pass a file from RUN/checkpoints/",
        )
    with reraise_as_user_error(file, "EMA weights written by train.py", "take another checkpoint"):
        values = json.loads(header)
        step = int(values.pop("step"))
        card = ModelCard.from_json(values)
    return card, step
