"""A folder that is all of a trained network: to copy, to put on the hub, to pass as `--run`.

model.safetensors   EMA weights, the model card in the header
config.json         the same card, to read
README.md           the card in words, with a picture, sample.png
export.json         the mark of the command, written first
vae/, text_encoder/ the networks beside it that were folders on this machine
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from dit.encoders.autoencoder import CONFIG as VAE_CONFIG
from dit.encoders.autoencoder import locate_autoencoder
from dit.encoders.text import PATTERNS, Captioned, locate_text_encoder
from dit.errors import UserError
from dit.export.model_card import NOTHING_SAID, PICTURE, README, About, write_model_card
from dit.runs.card import CONFIG, ModelCard
from dit.runs.checkpoint_files import SAVED
from dit.runs.weights import read_header, write_weights
from dit.sampling.load import LoadedRun
from dit.utils.files import real_path, write_json
from dit.utils.hub import absolute_if_local
from dit.utils.imports import is_class_name
from dit.utils.outputs import create_folder, is_record, require_own_folder
from dit.utils.package import __version__
from dit.utils.stored_weights import find_stored_weights

VAE, TEXT_ENCODER = "vae", "text_encoder"
RECORD, RECORD_KEYS = "export.json", ("dit_export",)  # marks a folder of the command
FILES = (SAVED, CONFIG, "model_index.json", "pipeline.py", PICTURE, README)
FOLDERS = (VAE, TEXT_ENCODER, "transformer", "scheduler")
"""What is written into a folder, in any format."""
ABOUT_THIS_MACHINE = ("out", "init", "resume", "wandb", "eval_reference", "eval_weights")
"""Settings that are paths of the machine that trained, or names of an account there."""


def save_folder(run: LoadedRun, out: Path, *, about: About = NOTHING_SAID) -> Path:
    """Save a network as a folder of our own format; return it.

    Args:
        run: What to save: its EMA weights.
        out: New, empty, or a folder of `dit export`.
        about: What the model card says that the run does not know, such as the licence.
    """
    claim_folder(run, out)
    card = portable_card(run)
    vae, encoder = absolute_if_local(card.config.vae), card.config.text_encoder
    if Path(vae).is_absolute():
        copy_autoencoder(vae, out / VAE)
        card = with_settings(card, vae=f"./{VAE}")
    if encoder and Path(absolute_if_local(encoder)).is_absolute():
        copy_text_encoder(encoder, out / TEXT_ENCODER)
        card = with_settings(card, text_encoder=f"./{TEXT_ENCODER}")

    write_weights(out / SAVED, run.weights.state_dict, card, run.weights.step)
    write_json(out / CONFIG, card.to_json())
    write_model_card(run, out, about)
    return out


def claim_folder(run: LoadedRun, out: Path) -> None:
    """Create an output folder; refuse one that is not of `dit export`, or that the run is in."""
    if real_path(out) in (real_path(run.weights.path), *real_path(run.weights.path).parents):
        raise UserError(
            f"--out {out} holds the weights to export", "another folder", "change --out"
        )
    record = out / RECORD
    is_own = record.is_file() and is_record(record, RECORD_KEYS)
    require_own_folder(out, f"{RECORD} of dit export", "dit export", is_own)
    if is_own:
        # of another network, or in another format
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        for name in FOLDERS:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
    create_folder(out)
    # first, so that an export which was interrupted can be repeated
    write_json(record, dict.fromkeys(RECORD_KEYS, __version__))


def refuse_own_code(run: LoadedRun) -> None:
    """Refuse to give away a network without its code, which others could not load."""
    model = run.card.network.model
    if is_class_name(model):
        raise UserError(
            f"{run.weights.path} of --model {model} for diffusers or the hub",
            "a network of this package",
            "its code is not in the file: share a folder of this package's format, and the code",
        )


def portable_card(run: LoadedRun) -> ModelCard:
    """Return the card of a run without paths of this machine; of data the last name stays."""
    card = run.card
    if isinstance(run.denoise.network, Captioned) or run.trained_size:
        # as loaded, its classes are the captions to draw, and its size is that of the images
        card = read_header(run.weights.path)[0]
    data = card.config.data if card.config.data.startswith("hf:") else Path(card.config.data).name
    align = card.config.align and Path(card.config.align).name
    nothing: dict[str, Any] = dict.fromkeys(ABOUT_THIS_MACHINE)
    return with_settings(card, data=data, align=align, **nothing)


def id_to_label(card: ModelCard) -> dict[str, str]:
    """Return the names of the classes by id, as JSON has keys."""
    return {str(label): name for label, name in enumerate(card.classes)}


def with_settings(card: ModelCard, **names: Any) -> ModelCard:
    """Return the card with other names of its networks and data."""
    return replace(card, config=replace(card.config, **names))


def copy_autoencoder(name: str, out: Path) -> None:
    """Copy the config and the weights of an autoencoder, by diffusers' usual names."""
    folder = locate_autoencoder(name)
    stored = find_stored_weights(folder)
    create_folder(out)
    for file in {folder / VAE_CONFIG, stored.listing, *stored.files}:
        # such as .fp16, of a variant, which diffusers would not look for
        usual = file.name.replace(f".{stored.variant}", "")
        shutil.copyfile(file, out / usual)


def copy_text_encoder(name: str, out: Path) -> None:
    """Copy the files of a text encoder and of its tokenizer."""
    folder = locate_text_encoder(name)
    create_folder(out)
    for pattern in PATTERNS:
        for file in folder.glob(pattern):
            shutil.copyfile(file, out / file.name)
