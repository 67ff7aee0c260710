"""Defaults of flags of training: of the run to --resume, the --preset, or those of --data.

What follows from images and machine is decided here, once. torch is imported only where images are
looked at: most mistakes and --help need none.
"""

import dataclasses
import sys
from pathlib import Path

from dit.config import TrainConfig
from dit.distributed.launcher import read_launch
from dit.errors import UserError, did_you_mean
from dit.utils.image_size import Size, sides, size_of
from dit.utils.imports import is_class_name
from dit.utils.outputs import ENCODING

INDEX = "index.json"  # in folders of latents
PHOTOS = "photos"
HELP = {"--help", "--help-all"}

Typed = dict[str, list[str]]  # the values of each flag that was typed


def default_settings(typed: Typed) -> TrainConfig | None:
    """Return the defaults of all flags; None for those of TrainConfig.

    Stored latents have an autoencoder and an image size, which are the defaults of these flags.
    """
    resume = first_value(typed, "--resume")
    preset = first_value(typed, "--preset")
    if resume not in (None, "auto"):
        if preset is not None:
            raise UserError(
                f"--preset {preset} with --resume {resume}",
                "one of the two",
                "drop --preset: a run continues with its own settings",
            )
        return _settings_of(Path(resume))

    # runs of earlier versions had other defaults, and another choice of preset
    if resume == "auto" and preset in (None, PHOTOS) and (started := _started_before(typed)):
        return started
    data = first_value(typed, "--data")
    if preset is None and data not in (None, "digits"):
        preset = PHOTOS
    if preset == PHOTOS:
        default = _of_images(typed, data or "digits")
        # only a DiT has blocks to choose; nobody typed those of the preset
        is_dit = (first_value(typed, "--model") or default.model).startswith("DiT-")
        return default if is_dit else dataclasses.replace(default, block="plain")
    chosen = None if preset is None else _preset(preset)
    return _with_latents(chosen, Path(data or (chosen.data if chosen else "digits")))


def first_value(typed: Typed, flag: str) -> str | None:
    """Return the first value of a flag, if any was typed."""
    values = typed.get(flag)
    return values[0] if values else None


# -- images ----------------------------------------------------------------------------------------


def _of_images(typed: Typed, data: str) -> TrainConfig:
    """Return the preset photos, as it suits these images and this machine."""
    if not typed.keys() & HELP:
        _require_something(data)
    from dit.data.path_patterns import IN_MEMORY

    if read_launch().rank == 0 and data != IN_MEMORY:
        # to import torch takes seconds
        what = "latents" if _holds_latents(Path(data)) else "images"
        print(f"start: looking at the {what} of {data}", file=sys.stderr, flush=True)
    from dit.config.presets import photos
    from dit.distributed.device import choose_device

    gpu = choose_device(read_launch()).type == "cuda"
    default = photos(gpu)
    if {"--steps", "--epochs"} & typed.keys():
        default = dataclasses.replace(default, minutes=None)

    from dit.latents.first_stage import FirstStage, choose_first_stage, choose_patch, latent_sides

    if _holds_latents(Path(data)):
        from dit.latents.store import read_index

        index = read_index(Path(data))
        stage = FirstStage(index.vae, size_of(*sides(index.image_size)))
        height, width = index.shape[1:]
    else:
        stage = choose_first_stage(data, gpu, first_value(typed, "--vae"), _size(typed))
        height, width = latent_sides(stage)
        if read_launch().rank == 0:
            for note in stage.notes:
                print(f"note: {note}", file=sys.stderr)
    if not gpu:
        default = dataclasses.replace(default, model=f"DiT-Ti/{choose_patch(height, width)}")
    return dataclasses.replace(default, vae=stage.vae, image_size=stage.image_size)


def _require_something(data: str) -> None:
    """Refuse a path to nothing before torch is imported, as it is often mistyped."""
    from dit.data.path_patterns import IN_MEMORY, is_pattern, no_such_data

    is_name = data in ("digits", IN_MEMORY) or data.startswith("hf:") or is_class_name(data)
    if not is_name and not is_pattern(data) and not Path(data).expanduser().exists():
        raise no_such_data(data)


def _size(typed: Typed) -> Size | None:
    """Return --image-size; None if it is not typed, or wrong, which the parser refuses."""
    values = typed.get("--image-size", [])
    if not values or not all(value.isdecimal() for value in values):
        return None
    return size_of(int(values[0]), int(values[-1]))


def _started_before(typed: Typed) -> TrainConfig | None:
    """Return the settings of a run that `--resume auto` continues: none is decided again."""
    from dit.runs.checkpoint_files import latest_checkpoint, read_card

    out = first_value(typed, "--out")
    if out is None or latest_checkpoint(Path(out)) is None:
        return None
    before = read_card(Path(out)).config
    if first_value(typed, "--preset") not in (None, before.preset):
        return None
    # --steps is the new length of a run of --epochs
    return _open_intervals(
        dataclasses.replace(before, epochs=None) if "--steps" in typed else before
    )


# -- latents, presets, runs ------------------------------------------------------------------------


def _holds_latents(data: Path) -> bool:
    # not by dit.latents, which loads torch
    return all((data / name).is_file() for name in (ENCODING, INDEX))


def _with_latents(default: TrainConfig | None, data: Path) -> TrainConfig | None:
    """Return defaults with the autoencoder and the image size of `data`, if it holds latents."""
    if not _holds_latents(data):
        return default
    from dit.latents.store import read_index

    index = read_index(data)
    size = size_of(*sides(index.image_size))
    return dataclasses.replace(default or TrainConfig(), vae=index.vae, image_size=size)


def _preset(name: str) -> TrainConfig:
    from dit.config.presets import PRESETS

    if name not in PRESETS:
        given, expected = f"unknown preset {name!r}", f"one of {', '.join(PRESETS)}"
        raise UserError(given, expected, did_you_mean(name, PRESETS))
    return PRESETS[name]()


def _settings_of(run: Path) -> TrainConfig:
    from dit.runs.checkpoint_files import (
        latest_checkpoint,
        read_card,
        refuse_incomplete,
        run_containing,
    )
    from dit.utils.files import shell_quote

    if home := run_containing(run):
        raise UserError(
            f"--resume {run}, a checkpoint of the run {home}",
            "the run, which continues from its newest one",
            f"pass `--resume {shell_quote(home)}`; for an older one, first move later ones away",
        )
    refuse_incomplete(run)
    if latest_checkpoint(run) is None:
        raise UserError(
            f"--resume {run}: no checkpoint there",
            "a run directory with checkpoints/",
            "check the path, or start a run with `--out RUN --resume auto`",
        )
    return _open_intervals(dataclasses.replace(read_card(run).config, resume=str(run), out=run))


def _open_intervals(config: TrainConfig) -> TrainConfig:
    """Return settings of a run whose intervals are decided again, unless they are typed."""
    return dataclasses.replace(config, sample_every=None, ckpt_every=None)
