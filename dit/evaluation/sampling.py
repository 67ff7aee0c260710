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
from dit.hardware import Ranks, uses_bf16
from dit.sample_folder import ARCHIVE, RECORD, sample_folder


def sampled(run: Run, config: SamplerConfig, count: int, out: Path, ranks: Ranks) -> Path:
    """Images of all classes in turn in `out`/samples-HASH, named by the settings; what is there already stays."""
    folder = out / f"samples-{settings_key(run, config, count)}"
    return sample_folder(run, config, range(len(run.card.classes)), count, folder, "png", ranks)


def settings_key(run: Run, config: SamplerConfig, count: int) -> str:
    """The same for the same images: a hash of number, weights and settings, those that change no image left out."""
    asked = {f.name: getattr(config, f.name) for f in dataclasses.fields(SamplerConfig) if f.name != "batch_size"}
    asked["precision"] = "bf16" if uses_bf16(run.device, config.precision) else "fp32"
    text = json.dumps([asked, count, sha256(run.weights.path)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def recorded_settings(samples: Path | None) -> dict[str, Any]:
    """What samples.json says of how the images were made; nothing where there is none.

    Raises:
        UserError: it is no JSON.
    """
    if samples is None or (samples.is_file() and samples.name != ARCHIVE):
        return {}
    path = (samples if samples.is_dir() else samples.parent) / RECORD
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error})", "the file that sample.py wrote", "remove it") from error
    return settings if isinstance(settings, dict) else {}
