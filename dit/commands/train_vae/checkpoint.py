"""The checkpoint of a first stage in training: one safetensors file, with its settings as header.

It is removed once the training is complete: a first stage in use does not change, because runs
record the checksum of its weights.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from dit.commands.train_vae.learner import Learner
from dit.commands.train_vae.log_window import LogWindow
from dit.commands.train_vae.losses import VQForward
from dit.config import VaeConfig, to_json
from dit.data.sources import locate
from dit.errors import UserError
from dit.runs.weights import require_usable
from dit.utils.files import real_path, shell_quote, write_atomically
from dit.utils.system import sync_to_disk
from dit.utils.typed_json import WrongJson, parse_json

CHECKPOINT = "checkpoint.safetensors"
HEADER = "dit train-vae"  # entry of the file's metadata
EXPECTED = "the checkpoint that dit train-vae wrote"


@dataclass(frozen=True)
class Progress:
    """How far a training is, and its settings.

    Attributes:
        images: how many there are to train on.
        seconds: what its steps took.
        stamp: of the files of all images; "" where they are no files, and in earlier versions.
    """

    step: int
    images: int
    seconds: float
    config: VaeConfig
    stamp: str = ""


def with_absolute_paths(cfg: VaeConfig) -> VaeConfig:
    """Return settings with absolute paths, so that a training continues from any folder."""
    weights = cfg.weights
    if weights:
        name, equals, file = weights.partition("=")
        is_named = equals and not Path(weights).expanduser().is_file()
        weights = f"{name}={real_path(file)}" if is_named else str(real_path(weights))
    lpips = cfg.lpips and real_path(cfg.lpips)
    return replace(cfg, data=locate(cfg.data), lpips=lpips, weights=weights)


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder is of a training that was stopped."""
    return (folder / CHECKPOINT).is_file()


def read_stopped(folder: Path) -> Progress:
    """Return how far the training in a folder is, by the header of its checkpoint."""
    file = folder / CHECKPOINT
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get(HEADER, "")
        return parse_json(header, Progress)
    except (SafetensorError, OSError, WrongJson) as error:
        raise UserError(
            f"{file} is missing or damaged ({error})", EXPECTED, _start_over(file)
        ) from None


def save_checkpoint(out: Path, done: Progress, learner: Learner, window: LogWindow) -> None:
    """Replace the checkpoint in a folder; refuse weights that are not finite."""
    file = out / CHECKPOINT
    lower = f"lower --lr (it is {done.config.lr:g})"
    kept = lower
    if has_checkpoint(out):
        kept = f"continue from the one before with --resume {shell_quote(out)}, and {lower}"
    require_usable(file, learner.network.state_dict(), f"it was not written: {kept}")

    values = {**vars(done), "config": to_json(with_absolute_paths(done.config))}
    tensors = learner.tensors() | window.tensors()
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(file) as beside:
        beside.write_bytes(to_bytes(held, {HEADER: json.dumps(values)}))
        sync_to_disk(beside)


def load_checkpoint(out: Path, step: int, learner: Learner, window: LogWindow) -> None:
    """Restore a new learner, and what is not logged yet, to what they were after a step."""
    file = out / CHECKPOINT
    try:
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error})", EXPECTED, _start_over(file)) from None

    window.restore(stored)
    learner.create_moments(stored)
    tensors = learner.tensors()
    for name in sorted(tensors.keys() ^ stored.keys()):
        raise UserError(f"{file} and these settings differ in {name}", EXPECTED, _start_over(file))
    for name, tensor in tensors.items():
        if tensor.shape != stored[name].shape:
            given = f"{name} in {file} has shape {tuple(stored[name].shape)}"
            raise UserError(given, f"{tuple(tensor.shape)}", _start_over(file))
        tensor.detach().copy_(stored[name])
    if isinstance(learner.forward, VQForward):
        learner.forward.steps = step


def _start_over(file: Path) -> str:
    return f"copy it again; to start over, remove {file}"
