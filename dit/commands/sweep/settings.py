"""The settings of a sweep: every combination that its flags ask for and its run can serve."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from dit.commands.sweep import parameter_grid as grid
from dit.commands.sweep.points import Setting
from dit.config import SamplerConfig, SweepConfig
from dit.config.sampling import INTERNAL
from dit.config.validation import NOT_DDIM, NOT_DDPM, NOTHING_GUIDED, require_lengths, require_use
from dit.runs import posthoc_ema
from dit.runs.checkpoint_files import find_weights
from dit.sampling.load import LoadedRun, with_classifier_labels
from dit.sampling.pipeline import build_pipeline
from dit.sampling.resolve import find_sampler, has_null_class
from dit.utils.image_size import size_of


def settings_of(cfg: SweepConfig, run: LoadedRun) -> list[Setting]:
    """Return the settings, each meaning once; refuse flags that the run cannot serve."""
    known = get_args(get_type_hints(SamplerConfig)["sampler"])
    names = grid.parse_names("--sampler", cfg.sampler, known)
    samplers = [find_sampler(name, run.card) for name in names]
    scales = grid.parse_numbers("--cfg-scale", cfg.cfg_scale or _usual_scales(cfg, run))
    weights = [0.0]
    if cfg.classifier:
        weights = grid.parse_numbers("--classifier-scale", cfg.classifier_scale or "1")
    # the first axis varies slowest: its networks are loaded once each
    axes: dict[str, list[Any]] = {
        "ema_length": _optional(grid.parse_numbers, "--ema-lengths", cfg.ema_length),
        "sampler": samplers,
        "steps": _optional(grid.parse_counts, "--steps", cfg.steps),
        "cfg_interval": grid.parse_intervals("--cfg-interval", cfg.interval),
        "cfg_scale": scales,
        "classifier_scale": weights,
    }

    require_use(cfg, ("guide", "interval", "cfg_channels"), scales != [1.0], *NOTHING_GUIDED)
    require_use(cfg, ("eta",), "ddim" in samplers, f"with --sampler {cfg.sampler}", *NOT_DDIM)
    require_use(cfg, ("variance",), "ddpm" in samplers, f"with --sampler {cfg.sampler}", *NOT_DDPM)
    grid.check_count("the sweep", math.prod(map(len, axes.values())))

    # the weights as they are now: a guiding run may go on training
    guide = cfg.guide
    if guide and guide != INTERNAL:
        guide = find_weights(guide)
    classifier = cfg.classifier and find_weights(cfg.classifier)
    pinned = dataclasses.replace(cfg, guide=guide, classifier=classifier)

    settings = []
    for values in itertools.product(*axes.values()):
        named = dict(zip(axes, values, strict=True))
        settings.append(_resolve(run, pinned, **named))
    return list(dict.fromkeys(settings))


def _optional(parse: Callable[[str, str], list[Any]], flag: str, text: str | None) -> list[Any]:
    if text is None:
        return [None]
    return parse(flag, text)


def _usual_scales(cfg: SweepConfig, run: LoadedRun) -> str:
    """Return a range of scales where classifier-free guidance or a guide can be used."""
    classifier_free = has_null_class(run.card) and not cfg.classifier
    return "1:4:0.5" if cfg.guide or classifier_free else "1"


def _resolve(run: LoadedRun, cfg: SweepConfig, **values: Any) -> Setting:
    """Return a setting without `auto` and without values that it does not use.

    Settings that mean the same are equal and share a point.
    """
    sampler = values["sampler"]
    weight = values.pop("classifier_scale")
    # at scale 1 the conditional network alone is sampled
    is_guided = values["cfg_scale"] != 1
    if not is_guided:
        values["cfg_interval"] = (0.0, 1.0)
    setting = Setting(
        **values,
        seed=cfg.seed,
        guide=cfg.guide if is_guided else None,
        classifier=cfg.classifier if weight else None,
        classifier_scale=weight or 1.0,
        cfg_channels=cfg.cfg_channels if is_guided else None,
        eta=cfg.eta if sampler == "ddim" else 0.0,
        variance=cfg.variance if sampler == "ddpm" else "auto",
        batch_size=cfg.batch_size,
        precision=cfg.precision,
        image_size=size_of(*run.image_size) if run.trained_size else None,
    )
    labelled = with_classifier_labels(run, setting.classifier)
    pipeline = build_pipeline(labelled, setting)
    return dataclasses.replace(setting, steps=pipeline.steps)


def ema_files(run: Path, lengths: list[float]) -> dict[float | None, Path]:
    """Return weights of every EMA length, written into the run as `dit ema` does if missing."""
    if not lengths:
        return {}
    require_lengths("--ema-lengths", tuple(lengths))

    files: dict[float | None, Path] = {}
    for mixture in posthoc_ema.mixtures(run, lengths):
        file = files[mixture.length] = posthoc_ema.default_file(run, mixture)
        if not file.exists():
            posthoc_ema.write_mixture(mixture, file)
            print(mixture)
    return files
