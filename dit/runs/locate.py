"""Where a network is that is named by a path, or by its name on the Hugging Face hub."""

from pathlib import Path

from dit.runs.checkpoint_files import SAVED
from dit.runs.formats.diffusers_folder import PICKLED, TRANSFORMER
from dit.utils.hub import find_folder, is_hub_name

FILES = (
    SAVED,
    "*.json",
    *(f"{TRANSFORMER}/*.{ending}" for ending in ("json", "safetensors")),
    *("scheduler/*.json", "vae/*.json", "vae/*.safetensors", "vqvae/*.json", "vqvae/*.safetensors"),
    "text_encoder/*",
)
"""Patterns of the files of a network on the hub."""


def locate_run(name: str | Path, flag: str = "--run") -> Path:
    """Return the path of a run, a checkpoint, a weights file or a folder that `load_run` takes.

    What is on this machine stays as it is named. OWNER/NAME of the hub becomes a folder of its
    cache, downloaded if necessary.

    Args:
        name: A path, or OWNER/NAME of the hub.
        flag: Which gave it, for messages.

    Raises:
        UserError: OWNER/NAME is neither here nor available from the hub.
    """
    text = str(name)
    if Path(text).expanduser().exists() or not is_hub_name(text):
        return Path(text).expanduser()
    # pickled weights are downloaded only where there are no others
    for patterns in (FILES, (*FILES, f"{TRANSFORMER}/{PICKLED}")):
        folder = find_folder(
            flag,
            text,
            "a run directory, a checkpoint, a .safetensors file, a folder of `dit export` or of a "
            "DiT of diffusers",
            "the model's files",
            patterns,
        )
        if has_weights(folder):
            break
    return folder


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights that are no pickle, or a pickle where nothing else is."""
    transformer = folder / TRANSFORMER
    safe = any(transformer.glob("*.safetensors")) or (transformer / PICKLED).is_file()
    return (folder / SAVED).is_file() or safe
