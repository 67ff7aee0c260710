"""Samples of a run in a folder of their own, and the settings recorded beside samples."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit.config import PERFORMANCE_FLAGS, SamplerConfig
from dit.config.sampling import INTERNAL
from dit.distributed.device import compute_precision
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.inputs.images import ImageSet, read_images
from dit.runs.checkpoint_files import checkpoints, find_weights, is_run
from dit.sampling.classes import class_ids
from dit.sampling.load import LoadedRun
from dit.sampling.sample_folder import ARCHIVE, RECORD, SampleRecord, sample_folder
from dit.utils.files import sha256, shell_quote
from dit.utils.image_size import size_of
from dit.utils.typed_json import read_json

# Settings that are listed only where they are used
OPTIONAL = (
    *("guide", "classifier", "classifier_scale", "image_size"),
    *("block_cache", "compile", "spacing"),
)


def _run_flag(run: Path) -> str:
    return f"--run {shell_quote(run)}"


def read_samples(path: Path, of_run: Callable[[Path], str] = _run_flag) -> ImageSet:
    """Return the images to score; refuse a run, whose pictures are curves and grids.

    Two or more are needed: what is wrong shows before any network is loaded.

    Args:
        of_run: How to pass a run, which is sampled first, instead.
    """
    for run in (path, path.parent):
        if (path == run or path.name == "samples") and (is_run(run) or checkpoints(run)):
            what = "a run" if path == run else f"the previews and grids of the run {run}"
            raise UserError(
                f"--samples {path} is {what}",
                "a folder of images, or an .npz file",
                f"pass {of_run(run)} to sample from it and score, or --samples with the folder of "
                "`sample.py --num-samples`",
            )
    images = read_images(path)
    if len(images) < 2:
        given = f"{len(images)} sample in {path}"
        raise UserError(given, "at least 2, better thousands", "add images")
    return images


def choose_classes(words: Sequence[str] | None, run: LoadedRun, ranks: Ranks) -> list[int] | None:
    """Return the ids that --classes names; None without it."""
    if words is None:
        return None
    ids, notes = class_ids(words, run.card)
    ranks.say(notes)
    return ids


def sample_to_folder(
    run: LoadedRun,
    config: SamplerConfig,
    count: int,
    out: Path,
    ranks: Ranks,
    classes: Sequence[int] | None = None,
) -> Path:
    """Sample classes in turn into `out`/samples-HASH, and continue where it was interrupted.

    Args:
        classes: their ids; all that have images unless given.
    """
    folder = out / f"samples-{settings_key(run, config, count, classes)}"
    return sample_folder(run, config, classes or run.card.ids, count, folder, "png", ranks)


def settings_key(
    run: LoadedRun, config: SamplerConfig, count: int, classes: Sequence[int] | None = None
) -> str:
    """Return a hash of number, weights and those settings that images depend on."""
    weights = sha256(run.weights.path)
    chosen = [[*classes]] if classes else []
    text = json.dumps([image_settings(run, config), count, weights, *chosen])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def image_settings(run: LoadedRun, config: SamplerConfig) -> dict[str, Any]:
    """Return the settings that images depend on, as JSON values; other networks by their hash."""
    asked = settings_in_use(
        config,
        precision=compute_precision(run.device, config.precision),
        image_size=size_of(*run.image_size) if run.trained_size else None,
        guide=_guide(config),
        classifier=config.classifier and sha256(find_weights(config.classifier)),
    )
    return {name: value for name, value in asked.items() if name not in PERFORMANCE_FLAGS}


def _guide(config: SamplerConfig) -> str | None:
    """Return the hash of the weights that guide, or `internal`."""
    if config.guide is None:
        return None
    if config.guide == INTERNAL:
        return str(INTERNAL)
    return sha256(find_weights(config.guide))


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
