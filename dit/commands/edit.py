"""`dit edit`: inpainting, variations of an image and interpolation, as a grid and files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dit.config import EditConfig
from dit.config.command_line import flag_words
from dit.distributed.ranks import Ranks
from dit.sampling.classes import class_ids
from dit.sampling.edit import Edit, both_seeds, build_edit
from dit.sampling.fit import require_samples_fit
from dit.sampling.load import LoadedRun, load_to_sample, with_prompts
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.sampling.protocol import protocol
from dit.sampling.resolve import notes_on_guidance
from dit.sampling.sample_folder import progress_callback, sampling_bar
from dit.utils import pictures
from dit.utils.files import sha256, shell_quote, write_json
from dit.utils.outputs import create_folder, require_outside, require_own_folder, signature

ROWS = 16  # classes of a grid, unless --classes asks for more
WHITE = 255
RECORD, GRID = "edit.json", "grid.png"


def edit(config: EditConfig, ranks: Ranks) -> Path:
    """Make the images, print where they are, and return their folder.

    Raises:
        UserError: Flags that do not fit the run, or files that are no images.
    """
    run = load_to_sample(config.run, ranks.device, config)
    if config.prompt or config.negative_prompt:
        run = with_prompts(run, config.prompt or (), config.negative_prompt)
    classes, notes = class_ids(config.classes, run.card)
    ranks.say([*notes, *notes_on_guidance(config, run.card)])
    return ranks.on_main(lambda: _edit(run, config, classes, ranks))


def plan(run: LoadedRun, config: EditConfig, classes: list[int]) -> tuple[SamplingPipeline, Edit]:
    """Return the pipeline, and the edit that it makes.

    Args:
        run: with the prompts of the flags.
        config: flags.
        classes: ids of the classes that the flags name, or of all.
    """
    if config.classes is None and not config.prompt:
        classes = pictures.spread(classes, 2 if config.interpolate else ROWS)
    count = config.per_class * (config.frames if config.interpolate else len(classes))
    # compiled code pads every batch to this size
    config = replace(config, batch_size=min(config.batch_size, count))
    first, last = both_seeds(config, classes)
    pipeline = build_pipeline(run, replace(config, seed=first, seeds=None), classes)
    rows = 2 if config.cfg_scale != 1 and not config.guide else 1
    require_samples_fit(run, config.batch_size, config.precision, rows)
    return pipeline, build_edit(pipeline, config, last)


def _edit(run: LoadedRun, config: EditConfig, classes: list[int], ranks: Ranks) -> Path:
    pipeline, planned = plan(run, config, classes)
    record = _record(pipeline, config)
    out = config.out or _default_out(run, config, record)
    # in a run, edits/ is the command's own
    if config.out:
        require_outside(out, run.card.config.data)
    require_own_folder(out, RECORD, "dit edit", (out / RECORD).is_file())

    count = sum(len(request.labels) for request in planned.requests)
    with sampling_bar(count, 0, ranks) as bar:
        callback = progress_callback(bar)
        images = planned.generate(lambda one: one.with_progress(callback))
        bar.update(count - bar.n)
    sheet = draw_sheet(pipeline, config, planned, images)
    _write(out, planned, images, sheet, record)

    print(f"{count} images and {GRID} in {out}")
    print(f"next: {next_command(config)}")
    return out


def draw_sheet(
    pipeline: SamplingPipeline, config: EditConfig, planned: Edit, images: Tensor
) -> Image.Image:
    """Draw a row for each class, or for each way, with the originals before the first."""
    rows: list[Tensor] = []
    for row in images.split(planned.columns):
        beside = list(planned.beside.values())
        # the originals are the same for all rows
        rows += [torch.full_like(one, WHITE) for one in beside] if rows else beside
        rows += row
    columns = len(planned.beside) + planned.columns
    labels = row_labels(pipeline, config)
    headings = [*planned.beside, *column_headings(pipeline, config, planned.columns)]
    scale = pictures.fitting_scale(max(images.shape[-2:]))
    return pictures.grid(torch.stack(rows), labels, columns, scale, headings=headings)


def row_labels(pipeline: SamplingPipeline, config: EditConfig) -> list[str] | None:
    """Return what is drawn in each row: class and strength, or seeds and image; None: no label."""
    if config.interpolate:
        first, last = both_seeds(config, pipeline.classes)
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        # no line ends before the number
        return [f"{seeds}, image\N{NO-BREAK SPACE}{row}" for row in range(config.per_class)]
    strength = [f"strength {config.strength:g}"] if config.variations else []
    names = [_names(pipeline, [label]) + strength for label in pipeline.classes]
    return [", ".join(parts) for parts in names] if names[0] else None


def column_headings(pipeline: SamplingPipeline, config: EditConfig, columns: int) -> list[str]:
    """Return the share of each column of a way, with the names of its ends; or seed and image."""
    if config.interpolate:
        shares = [f"{column / (columns - 1):.0%}" for column in range(columns)]
        ends = _names(pipeline, [pipeline.classes[0], pipeline.classes[-1]])
        for column, name in zip((0, -1), ends, strict=False):
            shares[column] += f"\n{name}"
        return shares
    if len(pipeline.classes) == 1:
        return [f"seed {config.seed}\nimage {column}" for column in range(columns)]
    # in other rows a column has images of other numbers
    return [f"seed {config.seed}", *[""] * (columns - 1)]


def _names(pipeline: SamplingPipeline, labels: list[int]) -> list[str]:
    card = pipeline.run.card
    return [] if card.unconditional else [card.class_name(label) for label in labels]


def next_command(config: EditConfig) -> str:
    """Return the command of other images: the same edit with the next seed or seeds."""
    if config.seeds:
        # as a path: it goes on where this one ended
        other = replace(config, seeds=(config.seeds[1], config.seeds[1] + 1))
    else:
        other = replace(config, seed=config.seed + 1)
    # another folder, as --out holds this edit now
    if config.out:
        other = replace(other, out=config.out.with_name(f"{config.out.name}-seed-{_last(other)}"))
    return " ".join(["dit edit", *map(shell_quote, flag_words(other))])


def _last(config: EditConfig) -> int:
    return config.seeds[1] if config.seeds else config.seed


def _record(pipeline: SamplingPipeline, config: EditConfig) -> dict[str, Any]:
    """Return all that the images depend on, as plain JSON values."""
    entries: dict[str, Any] = {"edit": config.edit, "per_class": config.per_class}
    if config.inpaint and config.mask:
        files = {"image_sha256": sha256(config.inpaint), "mask_sha256": sha256(config.mask)}
        entries |= {**files, "paste": config.paste}
    elif config.variations:
        entries |= {"image_sha256": sha256(config.variations), "strength": config.strength}
    else:
        seeds = both_seeds(config, pipeline.classes)
        entries |= {"seeds": list(seeds), "frames": config.frames}
    return {**entries, **protocol(pipeline)}


def _default_out(run: LoadedRun, config: EditConfig, record: dict[str, Any]) -> Path:
    """Return a name with the edit and six hex digits of the hash of all settings."""
    hashed = {name: value for name, value in record.items() if name != "versions"}
    digits = hashlib.sha256(json.dumps(hashed).encode()).hexdigest()[:6]
    return run.home / "edits" / f"{config.edit}-step-{run.weights.step:07d}-{digits}"


def _write(
    out: Path, planned: Edit, images: Tensor, sheet: Image.Image, record: dict[str, Any]
) -> None:
    create_folder(out)
    # the record first: with it the folder is the command's own, if it is stopped too
    write_json(out / RECORD, record)
    for file in out.glob("*.png"):
        # of an earlier edit with more images
        if file.stem.isdigit():
            file.unlink()
    for index, image in enumerate(images):
        pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        pictures.write_png(pixels, out / f"{index:06d}.png", signature("edit"))
    pictures.write_png(sheet, out / GRID, signature("edit"))
