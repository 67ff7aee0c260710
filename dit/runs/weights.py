"""Files of weights: safetensors with the model card in the header, or of a pipeline of diffusers.

A card in a folder that was made to be moved names the networks beside its file: `./vae`.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit.errors import UserError
from dit.runs.card import ModelCard
from dit.runs.formats.diffusers_folder import (
    TRANSFORMER,
    is_diffusers_network,
    read_diffusers_card,
    read_diffusers_weights,
)
from dit.utils.hub import name_in_cache
from dit.utils.typed_json import WrongJson, from_json, parse_json

WEIGHTS = "ema-*.safetensors"
BESIDE = "vae", "text_encoder"  # settings that may name a folder beside the file


@dataclass(frozen=True)
class Weights:
    """EMA weights with their origin."""

    path: Path
    card: ModelCard
    step: int
    state_dict: dict[str, Tensor]

    @property
    def home(self) -> Path:
        """Return the run directory that the file belongs to, else its folder.

        Of a file in the hub's cache, which is no place for results, runs/OWNER--NAME.
        """
        folder = self.path.parent
        if folder.parent.name == "checkpoints":
            return folder.parents[1]
        if folder.name == TRANSFORMER:
            folder = folder.parent
        name = name_in_cache(folder)
        return Path("runs", name.replace("/", "--")) if name else folder


def write_weights(file: Path, state_dict: dict[str, Tensor], card: ModelCard, step: int) -> None:
    """Write EMA weights with the card in the header."""
    header = json.dumps({**card.to_json(), "step": step})
    tensors = {name: v.detach().cpu().contiguous() for name, v in state_dict.items()}
    save_file(tensors, file, {"dit": header})

    # safetensors makes its files private: give them the permissions of other new files
    os.umask(umask := os.umask(0))
    file.chmod(0o666 & ~umask)


def read_weights(file: Path) -> Weights:
    """Read EMA weights; refuse numbers that no network has."""
    card, step = read_header(file)
    if is_diffusers_network(file):
        state_dict = read_diffusers_weights(file, card.network)
    else:
        state_dict = load_file(file)
    require_usable(file, state_dict, "take another checkpoint")
    return Weights(file, card, step, state_dict)


def require_usable(file: Path, state_dict: dict[str, Tensor], do: str) -> None:
    """Refuse weights that are integers, NaN or infinite; `file` is where they lie."""
    for name, tensor in state_dict.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not tensor.is_floating_point():
            raise UserError(f"{name} in {file} is {dtype}", "weights in floating point", do)
        if not tensor.isfinite().all():
            raise UserError(f"{name} in {file} has NaN or infinite values", "finite weights", do)


def read_header(file: Path) -> tuple[ModelCard, int]:
    """Return card and step of a weights file.

    Raises:
        UserError: not such a file, or truncated.
    """
    if is_diffusers_network(file):
        return read_diffusers_card(file), 0
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get("dit")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} cannot be read ({error})",
            "a complete .safetensors file of EMA weights",
            "copy it again; a .pt file of the DiT release goes through `dit convert`",
        ) from None
    expected = "EMA weights written by train.py"
    if header is None:
        given = f"{file} has no network description"
        raise UserError(given, expected, "pass a file from RUN/checkpoints/")
    try:
        values = parse_json(header, dict[str, Any])
        step = from_json(int, values.pop("step", None), "step")
        card = ModelCard.from_json(values).without_foreign_code(file)
        return _with_absolute_names(card, file.parent), step
    except WrongJson as error:
        given = f"the header of {file} is damaged ({error})"
        raise UserError(given, expected, "take another checkpoint") from None


def _with_absolute_names(card: ModelCard, folder: Path) -> ModelCard:
    """Return the card with absolute names of the networks that lie beside its file."""
    found = {}
    for setting in BESIDE:
        name = getattr(card.config, setting)
        if name and name.startswith("."):
            found[setting] = os.path.normpath(folder.absolute() / name)
    return replace(card, config=replace(card.config, **found)) if found else card
