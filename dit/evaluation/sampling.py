"""Samples to score: made from a run in a folder of their own, and what is recorded of how they were made."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from dit.build import Run
from dit.config import SamplerConfig
from dit.errors import UserError
from dit.files import sha256
from dit.hardware import Ranks
from dit.sample_folder import sample_folder


def sampled(run: Run, config: SamplerConfig, count: int, out: Path, ranks: Ranks) -> Path:
    """Images of all classes in turn in `out`/samples-HASH, named by the settings; what is there already stays."""
    folder = out / f"samples-{settings_key(run, config, count)}"
    return sample_folder(run, config, range(len(run.card.classes)), count, folder, "png", ranks)


def settings_key(run: Run, config: SamplerConfig, count: int) -> str:
    """The same for the same images: a hash of settings, number and weights."""
    asked = {f.name: getattr(config, f.name) for f in dataclasses.fields(SamplerConfig)}
    text = json.dumps([asked, count, sha256(run.weights.path)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def recorded_settings(samples: Path | None) -> dict[str, Any]:
    """What samples.json says of how the images were made; nothing where there is none.

    Raises:
        UserError: it is no JSON.
    """
    path = (samples if samples.is_dir() else samples.parent) / "samples.json" if samples else None
    if path is None or not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON ({error})", "the file that sample.py wrote", "remove it") from error
    return settings if isinstance(settings, dict) else {}
