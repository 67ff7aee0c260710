"""Samples of a run in a folder of their own, and the settings recorded beside samples."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit.config import PERFORMANCE_FLAGS, SamplerConfig
from dit.distributed.device import compute_precision
from dit.distributed.ranks import Ranks
from dit.runs.checkpoint_files import find_weights
from dit.sampling.load import LoadedRun
from dit.sampling.sample_folder import ARCHIVE, RECORD, SampleRecord, sample_folder
from dit.utils.files import sha256
from dit.utils.image_size import size_of
from dit.utils.typed_json import read_json

# Settings that are listed only where they are used
OPTIONAL = (
    *("guide", "classifier", "classifier_scale", "image_size"),
    *("block_cache", "compile", "spacing"),
)


def sample_to_folder(
    run: LoadedRun, config: SamplerConfig, count: int, out: Path, ranks: Ranks
) -> Path:
    """Sample all classes in turn into `out`/samples-HASH, and continue where it was interrupted."""
    folder = out / f"samples-{settings_key(run, config, count)}"
    return sample_folder(run, config, run.card.ids, count, folder, "png", ranks)


def settings_key(run: LoadedRun, config: SamplerConfig, count: int) -> str:
    """Return a hash of number, weights and those settings that images depend on."""
    weights = sha256(run.weights.path)
    text = json.dumps([image_settings(run, config), count, weights])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def image_settings(run: LoadedRun, config: SamplerConfig) -> dict[str, Any]:
    """Return the settings that images depend on, as JSON values; other networks by their hash."""
    asked = settings_in_use(
        config,
        precision=compute_precision(run.device, config.precision),
        image_size=size_of(*run.image_size) if run.trained_size else None,
        guide=config.guide and sha256(find_weights(config.guide)),
        classifier=config.classifier and sha256(find_weights(config.classifier)),
    )
    return {name: value for name, value in asked.items() if name not in PERFORMANCE_FLAGS}


def settings_in_use(config: SamplerConfig, **known: Any) -> dict[str, Any]:
    """Return the settings in use by name; `known` replaces values of the config."""
    scale = config.classifier_scale if config.classifier else None
    asked = {
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(SamplerConfig)},
        **known,
        "classifier_scale": scale,
        "spacing": config.spacing if config.spacing != "uniform" else None,
    }
    return {
        name: value for name, value in asked.items() if value is not None or name not in OPTIONAL
    }


def is_unconditional(settings: Mapping[str, Any]) -> bool:
    """Return whether the images have no classes, according to samples.json."""
    network = settings.get("network", {})
    return network.get("num_classes") == 0 and not settings.get("classes")


def recorded_settings(samples: Path | None) -> dict[str, Any]:
    """Return the content of samples.json beside or inside `samples`; empty where it is missing."""
    if samples is None or (samples.is_file() and samples.name != ARCHIVE):
        return {}
    path = (samples if samples.is_dir() else samples.parent) / RECORD
    if not path.is_file():
        return {}
    return {**read_json(path, SampleRecord, "the settings that sample.py wrote", f"remove {path}")}
