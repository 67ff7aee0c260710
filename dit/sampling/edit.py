"""Edits of images by a run: inpainting, variations and interpolation, as samples to generate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dit.config import EditConfig
from dit.data.image_files import center_crop, read_rgb, read_size
from dit.diffusion.editing import between_classes, between_noises, keep_known, starting_at
from dit.errors import UserError
from dit.sampling.generate import ImageNoise, generate
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import SamplingPipeline
from dit.utils.image_size import format_size

WHITE = 128  # of 256 levels: from here on a mask is white
GRAY = 127  # of the part to paint, in a picture
MOST_PIXELS = 10**8  # of an image to edit: read as a whole, it takes 0.3 GB

Watch = Callable[[SamplingPipeline], SamplingPipeline]
"""Returns a pipeline that also tells what its denoiser predicts."""


class Request(NamedTuple):
    """Images to generate by one pipeline."""

    pipeline: SamplingPipeline
    labels: Tensor  # class ids [N]
    indices: Tensor  # [N]; with the seed they choose the noise


@dataclass(frozen=True)
class Edit:
    """What an edit generates, and what it shows beside the results.

    Attributes:
        requests: their images in order are the results, row by row.
        columns: of results in a row.
        beside: pictures before the first row, uint8 [3, H, W], by heading.
        paint: bool [H, W], where pixels are generated; elsewhere they are those of `image`.
        image: uint8 [3, H, W].
    """

    requests: tuple[Request, ...]
    columns: int
    beside: dict[str, Tensor]
    paint: Tensor | None = None
    image: Tensor | None = None

    def generate(self, watch: Watch = lambda pipeline: pipeline) -> Tensor:
        """Return the results, uint8 [N, 3, H, W]."""
        parts = [
            generate(watch(pipeline), labels, indices)
            for pipeline, labels, indices in self.requests
        ]
        return self.finish(torch.cat(parts))

    def finish(self, images: Tensor) -> Tensor:
        """Return images uint8 [N, 3, H, W] with the pixels of the image pasted where they are kept.

        The autoencoder would change them a little.
        """
        if self.paint is None or self.image is None:
            return images
        return torch.where(self.paint, images, self.image)


# -- what is edited ------------------------------------------------------------------------------


def read_image(path: Path, run: LoadedRun, flag: str) -> Tensor:
    """Return an image file as the run's data were read: uint8 [3, H, W], the center cropped."""
    _require_image(path, flag)
    pixels = center_crop(read_rgb(path), run.image_size)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_mask(path: Path, image: Path, run: LoadedRun) -> Tensor:
    """Return where a mask is white, bool [H, W], cropped as the image is."""
    _require_image(path, "--mask")
    theirs, ours = read_size(path), read_size(image)
    if theirs != ours:
        raise UserError(
            f"--mask {path} of {format_size(theirs)} pixels for an image of {format_size(ours)}",
            "a mask of the image's size",
            "draw it on a copy of the image",
        )
    return read_image(path, run, "--mask").float().mean(0) >= WHITE


def _require_image(path: Path, flag: str) -> None:
    if not path.is_file():
        raise UserError(f"{flag} {path} is no file", "an image file", "check the path")
    height, width = read_size(path)
    if height * width > MOST_PIXELS:
        raise UserError(
            f"{flag} {path} of {format_size((height, width))} pixels",
            f"at most {MOST_PIXELS:,} pixels",
            "make it smaller",
        )


def encode(run: LoadedRun, image: Tensor) -> Tensor:
    """Return the latents [1, C, h, w] of an image uint8 [3, H, W]: the mean of its posterior."""
    moments = run.autoencoder.encode(image[None])
    return run.autoencoder.draw(moments, torch.zeros(1, *run.latent_shape))


def known_latents(paint: Tensor, factor: int) -> Tensor:
    """Return 1 for latents whose pixels are all kept, else 0, float32 [1, 1, h, w].

    Args:
        paint: bool [H, W], pixels that are not kept.
        factor: pixels per latent, along a side.
    """
    return 1 - F.max_pool2d(paint.float()[None, None], factor)


# -- the edits -----------------------------------------------------------------------------------


def inpaint(
    pipeline: SamplingPipeline, image: Tensor, paint: Tensor, per_class: int, paste: bool = True
) -> Edit:
    """Generate the part `paint` [H, W] of an image uint8 [3, H, W] anew.

    Image i has the noise, and with nothing kept the pixels, of image i of a grid of samples.
    """
    run = pipeline.run
    denoise = keep_known(
        pipeline.denoise,
        pipeline.process,
        run.denoise.objective,
        encode(run, image),
        known_latents(paint, run.autoencoder.factor).to(run.device),
    )
    kept = torch.where(paint, GRAY, image.int()).to(torch.uint8)
    return Edit(
        requests=grid_request(replace(pipeline, denoise=denoise), per_class),
        columns=per_class,
        beside={"given": image, "kept": kept},
        paint=paint if paste else None,
        image=image,
    )


def vary(pipeline: SamplingPipeline, image: Tensor, strength: float, per_class: int) -> Edit:
    """Noise an image uint8 [3, H, W], then take the last `strength` of the sampling steps."""
    run = pipeline.run
    latents = encode(run, image)
    taken = round(strength * pipeline.steps)
    # a little strength is a step, not none
    taken = max(taken, 1) if strength else 0
    started = replace(
        pipeline,
        sampler=starting_at(pipeline.sampler, latents),
        times=pipeline.times[pipeline.steps - taken :],
    )
    if taken == pipeline.steps:
        # a DDPM's first time still has a trace of the image
        started = pipeline
    return Edit(
        requests=grid_request(started, per_class),
        columns=per_class,
        beside={"given": image, "coded": run.autoencoder.decode(latents)[0].cpu()},
    )


def grid_request(pipeline: SamplingPipeline, per_class: int) -> tuple[Request]:
    """Return the request of all images, with the labels and noises of a grid of samples."""
    labels = torch.tensor(pipeline.classes).repeat_interleave(per_class)
    return (Request(pipeline, labels, torch.arange(len(labels))),)


def interpolate(pipeline: SamplingPipeline, to_seed: int, rows: int, frames: int) -> Edit:
    """Draw the way from one sample to another, between two classes, two seeds, or both.

    Args:
        pipeline: with one class, or two, and the seed of the first end.
        to_seed: of the other end; row i lies between the images i of both seeds.
        rows: number of ways.
        frames: images from end to end, both included.
    """
    if len(pipeline.classes) > 2:
        raise UserError(
            f"--interpolate between {len(pipeline.classes)} classes or prompts",
            "one or two",
            "pass two, such as --classes 0,1",
        )
    if len(set(pipeline.classes)) > 1 and pipeline.settings.block_cache:
        raise UserError(
            f"--interpolate between classes with --block-cache {pipeline.settings.block_cache}",
            "one of the two",
            "the cache would mix the classes: drop --block-cache",
        )
    weights = torch.linspace(0, 1, frames, dtype=torch.float64).repeat(rows)
    indices = torch.arange(rows).repeat_interleave(frames)
    size = pipeline.settings.batch_size
    requests = [
        _between(pipeline, to_seed, weight, index)
        for weight, index in zip(weights.split(size), indices.split(size), strict=True)
    ]
    return Edit(requests=tuple(requests), columns=frames, beside={})


def _between(pipeline: SamplingPipeline, to_seed: int, weights: Tensor, indices: Tensor) -> Request:
    """Return one batch of an interpolation, with weights [B] and indices [B]."""
    run = pipeline.run
    denoise, sampler = pipeline.denoise, pipeline.sampler
    first, last = pipeline.classes[0], pipeline.classes[-1]

    # equal ends need neither a second call nor an arc, whose rounding would change them
    if first != last:
        other = torch.full_like(indices, last).to(run.device)
        denoise = between_classes(denoise, other, weights)
    if to_seed != pipeline.settings.seed:
        noise = partial(ImageNoise, to_seed, indices, run.latent_shape, run.device)
        sampler = between_noises(sampler, noise, weights)

    labels = torch.full_like(indices, first)
    return Request(replace(pipeline, denoise=denoise, sampler=sampler), labels, indices)


def build_edit(pipeline: SamplingPipeline, config: EditConfig, to_seed: int) -> Edit:
    """Read the files that the flags name, and return the edit.

    Args:
        to_seed: the other end of an interpolation, whose first is the seed of the pipeline.
    """
    run = pipeline.run
    if config.inpaint:
        assert config.mask
        image = read_image(config.inpaint, run, "--inpaint")
        paint = read_mask(config.mask, config.inpaint, run)
        return inpaint(pipeline, image, paint, config.per_class, config.paste)
    if config.variations:
        image = read_image(config.variations, run, "--variations")
        return vary(pipeline, image, config.strength, config.per_class)
    return interpolate(pipeline, to_seed, config.per_class, config.frames)


def both_seeds(config: EditConfig, classes: Sequence[int]) -> tuple[int, int]:
    """Return the seeds of both ends: by default the same for two classes, else the next one."""
    if config.seeds:
        return config.seeds
    return config.seed, config.seed if len(set(classes)) > 1 else config.seed + 1
