"""Sampling as a user asks for it: a labelled grid, or a folder of many images."""

from pathlib import Path

from dit.build import Run, class_ids, load_run
from dit.config import SampleConfig
from dit.errors import UserError
from dit.files import replacing
from dit.generate import sample_grid
from dit.hardware import Ranks
from dit.pictures import fitting_scale, grid, spread
from dit.sample_folder import sample_folder

GRID_CLASSES = 16  # rows of a grid, unless --classes asks for more


def sample(config: SampleConfig, ranks: Ranks) -> Path:
    """Make the images, say where they are, and return that path: a PNG, or the folder.

    Raises:
        UserError: flags that do not fit together or the run; see also `load_run` and `sample_folder`.
    """
    _check(config)
    run = load_run(config.run, ranks.device)
    classes = class_ids(config.classes, run.card)
    if config.classes is None and config.num_samples is None:
        classes = spread(classes, GRID_CLASSES)
    if config.num_samples is not None:
        assert config.out is not None
        out = sample_folder(run, config, classes, config.num_samples, config.out, config.format, ranks)
        found = f"{config.num_samples} images in {out / 'samples.npz' if config.format == 'npz' else out}"
    else:
        out = config.out or _default_out(run, config)
        found = f"grid of samples in {out}"
        if ranks.main:
            _write_grid(run, config, classes, out)
        ranks.barrier()
    if ranks.main:
        print(found)
    return out


def _check(config: SampleConfig) -> None:
    if config.per_class < 1:
        raise UserError(f"--per-class {config.per_class}", "a number above 0", "change --per-class")
    if config.num_samples is None:
        if config.out is not None and (config.out.suffix.lower() != ".png" or config.out.is_dir()):
            raise UserError(f"--out {config.out} without --num-samples", "a .png file for the grid",
                            "name a .png file, or add --num-samples for a folder of images")
        return
    if config.num_samples < 1:
        raise UserError(f"--num-samples {config.num_samples}", "a number above 0", "change --num-samples")
    if config.out is None:
        raise UserError("--num-samples without --out", "a folder for the images", "add --out DIR")


def _write_grid(run: Run, config: SampleConfig, classes: list[int], out: Path) -> None:
    images, _ = sample_grid(run, config, classes, config.per_class)
    names = [run.card.class_name(c) for c in classes]
    sheet = grid(images, names, config.per_class, fitting_scale(images.shape[-1]))
    with replacing(out) as beside:
        sheet.save(beside, format="PNG")


def _default_out(run: Run, config: SampleConfig) -> Path:
    name = f"grid-step-{run.weights.step:07d}-cfg-{config.cfg_scale:g}-seed-{config.seed}.png"
    return run.home / "samples" / name
