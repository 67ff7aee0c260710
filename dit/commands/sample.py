"""Sampling as a user asks for it: a labelled grid, or a folder of many images."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from dit.config import SampleConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.sampling.folder import progress_callback, sample_folder, sampling_bar
from dit.sampling.generate import sample_grid
from dit.sampling.load import LoadedRun, class_ids, load_to_sample, prompted
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.sampling.protocol import protocol
from dit.utils.files import require_writable, shell_quote, write_atomically
from dit.utils.image_size import format_size
from dit.utils.pictures import fitting_scale, grid, spread

GRID_CLASSES = 16  # rows of a grid, unless --classes asks for more
COLUMNS = 8  # of a grid without classes


def sample(config: SampleConfig, ranks: Ranks) -> Path:
    """Make the images, say where they are, and return that path: a PNG, or the folder.

    Raises:
        UserError: flags that do not fit together or the run; see also `load_to_sample` and `sample_folder`.
    """
    _check(config)
    run = load_to_sample(config.run, ranks.device, config)
    if config.prompt or config.negative_prompt:
        run = prompted(run, config.prompt or (), config.negative_prompt)
    classes = class_ids(config.classes, run.card)
    if config.classes is None and config.num_samples is None and not config.prompt:
        classes = spread(classes, GRID_CLASSES)
    if config.num_samples is not None:
        assert config.out is not None
        out = sample_folder(
            run, config, classes, config.num_samples, config.out, config.format, ranks
        )
        found = f"{config.num_samples} images in {out / 'samples.npz' if config.format == 'npz' else out}"
    else:
        count = len(classes) * config.per_class
        config = replace(config, batch_size=min(config.batch_size, count))
        plan = build_pipeline(run, config)
        out = config.out or _default_out(run, plan, config, classes)
        ranks.on_main(lambda: require_writable(out, ".png"))
        found = f"grid of samples in {out}"
        if ranks.main:
            with sampling_bar(count, 0, ranks) as bar:
                _write_grid(run, plan.counting(progress_callback(bar)), config, classes, out)
                bar.update(count - bar.n)
        ranks.barrier()
    if ranks.main:
        print(found)
    return out


def _check(config: SampleConfig) -> None:
    if config.per_class < 1:
        raise UserError(f"--per-class {config.per_class}", "a number above 0", "change --per-class")
    if config.num_samples is None:
        if config.out is not None and (config.out.suffix.lower() != ".png" or config.out.is_dir()):
            raise UserError(
                f"--out {config.out} without --num-samples",
                "a .png file for the grid",
                "name a .png file, or add --num-samples for a folder of images",
            )
        return
    if config.num_samples < 1:
        raise UserError(
            f"--num-samples {config.num_samples}", "a number above 0", "change --num-samples"
        )
    if config.out is None:
        raise UserError("--num-samples without --out", "a folder for the images", "add --out DIR")
    if config.out.suffix.lower() in (".png", ".npz"):
        folder = shell_quote(config.out.with_suffix(""))
        raise UserError(
            f"--out {config.out} with --num-samples",
            "a folder for the images",
            f"name a folder, such as {folder}, or drop --num-samples for a grid",
        )


def _write_grid(
    run: LoadedRun, plan: SamplingPipeline, config: SampleConfig, classes: list[int], out: Path
) -> None:
    images, _ = sample_grid(run, plan, config, classes, config.per_class)
    names = None if run.card.unconditional else [run.card.class_name(c) for c in classes]
    columns = config.per_class if names else min(config.per_class, COLUMNS)
    sheet = grid(images, names, columns, fitting_scale(max(images.shape[-2:])))
    with write_atomically(out) as beside:
        sheet.save(beside, format="PNG")


def _default_out(
    run: LoadedRun, plan: SamplingPipeline, config: SampleConfig, classes: list[int]
) -> Path:
    """Named by weights, sampler, steps, guidance and seed, and by six digits of all that the picture depends on."""
    made = {**protocol(run, plan, config, classes), "per_class": config.per_class}
    del made["versions"]
    digits = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:6]
    average = "" if run.card.ema_length is None else f"-ema-{run.card.ema_length:g}"
    size = f"-{format_size(run.image_size)}" if run.trained_size else ""
    how = f"{plan.name}-{plan.steps}-cfg-{config.cfg_scale:g}-seed-{config.seed}{size}"
    return run.home / "samples" / f"grid-step-{run.weights.step:07d}{average}-{how}-{digits}.png"
