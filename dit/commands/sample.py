"""`dit sample`, sample.py: a labelled grid, or a folder of many images."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from dit.config import SampleConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.sampling.classes import class_ids
from dit.sampling.fit import require_samples_fit
from dit.sampling.image_grid import draw_grid
from dit.sampling.load import LoadedRun, load_to_sample, with_prompts
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.sampling.protocol import protocol
from dit.sampling.resolve import notes_on_guidance
from dit.sampling.sample_folder import progress_callback, sample_folder, sampling_bar
from dit.utils.files import shell_quote
from dit.utils.image_size import format_size
from dit.utils.outputs import (
    require_outside,
    require_own_file,
    require_writable_file,
    signature,
)
from dit.utils.pictures import spread, write_png

GRID_CLASSES = 16  # rows of a grid, unless --classes asks for more


def sample(config: SampleConfig, ranks: Ranks) -> Path:
    """Make the images, print where they are, and return that path: a PNG or a folder.

    Raises:
        UserError: Flags that fit neither each other nor the run.
    """
    _check_flags(config)
    run = load_to_sample(config.run, ranks.device, config)
    if config.prompt or config.negative_prompt:
        run = with_prompts(run, config.prompt or (), config.negative_prompt)
    classes, notes = class_ids(config.classes, run.card)
    ranks.say([*notes, *notes_on_guidance(config, run.card)])

    if config.out:
        require_outside(config.out, run.card.config.data)
    if config.num_samples is None:
        return _sample_grid(run, config, classes, ranks)
    assert config.out
    out = sample_folder(run, config, classes, config.num_samples, config.out, config.format, ranks)
    if ranks.main:
        files = out / "samples.npz" if config.format == "npz" else out
        print(f"{config.num_samples} images in {files}")
    return out


def _check_flags(config: SampleConfig) -> None:
    if config.num_samples is None:
        out = config.out
        if out and (out.suffix.lower() != ".png" or out.is_dir()):
            raise UserError(
                f"--out {out} without --num-samples",
                "a .png file for the grid",
                "name a .png file, or add --num-samples for a folder of images",
            )
        return
    if config.out is None:
        raise UserError("--num-samples without --out", "a folder for the images", "add --out DIR")
    if config.out.suffix.lower() in (".png", ".npz"):
        folder = shell_quote(config.out.with_suffix(""))
        raise UserError(
            f"--out {config.out} with --num-samples",
            "a folder for the images",
            f"name a folder, such as {folder}, or drop --num-samples for a grid",
        )


def _sample_grid(run: LoadedRun, config: SampleConfig, classes: list[int], ranks: Ranks) -> Path:
    if config.classes is None and not config.prompt:
        classes = spread(classes, GRID_CLASSES)
    # compiled code pads every batch to this size
    count = len(classes) * config.per_class
    config = replace(config, batch_size=min(config.batch_size, count))

    pipeline = build_pipeline(run, config, classes)
    rows = 2 if config.cfg_scale != 1 and not config.guide else 1
    require_samples_fit(run, config.batch_size, config.precision, rows)
    out = config.out or _default_out(pipeline, config.per_class)
    ranks.on_main(lambda: require_writable_file(out, ".png"))
    # the default name has a hash of all settings: only the same picture is there
    if config.out:
        ranks.on_main(lambda: require_own_file(out, "sample"))

    if ranks.main:
        with sampling_bar(count, 0, ranks) as bar:
            counted = pipeline.with_progress(progress_callback(bar))
            sheet = draw_grid(counted, config.per_class)
            bar.update(count - bar.n)
        write_png(sheet, out, signature("sample"))
        print(f"grid of samples in {out}")
    ranks.barrier()
    return out


def _default_out(pipeline: SamplingPipeline, per_class: int) -> Path:
    """Return a name with the main settings and six hex digits of the hash of all settings."""
    run, settings = pipeline.run, pipeline.settings
    # a grid replaces another only if it is the same picture
    record = {**protocol(pipeline), "per_class": per_class}
    del record["versions"]
    text = json.dumps(record)
    digits = hashlib.sha256(text.encode()).hexdigest()[:6]

    average = "" if run.card.ema_length is None else f"-ema-{run.card.ema_length:g}"
    size = f"-{format_size(run.image_size)}" if run.trained_size else ""
    sampler = f"{settings.sampler}-{settings.steps}"
    guidance = f"cfg-{settings.cfg_scale:g}-seed-{settings.seed}{size}"
    name = f"grid-step-{run.weights.step:07d}{average}-{sampler}-{guidance}-{digits}.png"
    return run.home / "samples" / name
