"""A trained network that makes images, with the names of diffusers."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dit.encoders.text import Captioned
from dit.errors import UserError, did_you_mean
from dit.runs.locate import locate_run
from dit.sampling.classes import find_class
from dit.sampling.fit import require_samples_fit
from dit.sampling.generate import generate, require_finite, sample_latents
from dit.sampling.load import LoadedRun, load_run, move_run, with_prompts
from dit.sampling.pipeline import SamplingPipeline, build_pipeline
from dit.sampling.python_arguments import (
    checked_size,
    find_device,
    plain_value,
    python_names,
    sampler_settings,
)
from dit.sampling.step_callback import with_step_callback
from dit.utils.image_size import Size

OutputType = Literal["pil", "pt", "np", "latent"]
Callback = Callable[["Pipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]
Classes = str | int | Sequence[str | int] | None
MOST_PIXELS = 255  # levels of a pixel


@dataclass(frozen=True)
class PipelineOutput:
    """What a call of a `Pipeline` returns.

    Args:
        images: `pil`: a list of PIL images. `np`: float32 [N, H, W, 3] in 0 … 1, `pt`: float32
            [N, 3, H, W] in 0 … 1, as in diffusers; both are the pixels of 8 bits over 255.
            `latent`: float32 [N, C, h, w], as the network knows them.
        labels: Class ids [N]; of prompts, their numbers in the list.

    >>> out = pipe(["cat", 7])                                          # doctest: +SKIP
    >>> out.images[0].save("cat.png")                                   # doctest: +SKIP
    """

    images: Any
    labels: list[int]


class Pipeline:
    """A run that is loaded and makes images, as `sample.py` does.

    Several threads may call one pipeline at a time, each with its own settings.

    >>> import dit
    >>> pipe = dit.Pipeline.from_pretrained("runs/000-digits-DiT-Ti-2")  # doctest: +SKIP
    >>> pipe(["7", 3], guidance_scale=2.0, seed=0).images[0]             # doctest: +SKIP
    """

    def __init__(self, run: LoadedRun):
        self.run = run
        self._encoding = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str | torch.device | None = None,
        *,
        image_size: Size | None = None,
    ) -> "Pipeline":
        """Load a run, a checkpoint, a weights file, a folder of diffusers, or a name of the hub.

        Args:
            source: A run directory, a checkpoint directory, a .safetensors file of EMA weights, a
                folder that diffusers wrote, or OWNER/NAME.
            device: Such as `cpu` or `cuda:0`; the fastest kind of this machine unless given.
            image_size: Side, or height and width, to sample at; that of training unless given.

        Raises:
            UserError: There is no such run, it is damaged, or the device is not there.

        >>> pipe = dit.Pipeline.from_pretrained("owner/name", device="cpu")  # doctest: +SKIP
        """
        place = find_device(device)
        # what dit.train returned has a path too
        path = locate_run(getattr(source, "path", source), "source")
        return cls(load_trained(path, place, image_size))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by id; captions of a run that was trained with them.

        >>> pipe.classes[:3]                                             # doctest: +SKIP
        ['0', '1', '2']
        """
        return list(self.run.card.classes)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.run.device

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.run.image_size

    def __repr__(self) -> str:
        card = self.run.card
        height, width = self.image_size
        what = "without classes" if card.unconditional else f"of {len(card.classes)} classes"
        return f"Pipeline({card.network.model} {what}, {height} x {width} px, {self.device})"

    def __call__(
        self,
        classes: Classes = None,
        *,
        num_images: int | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        sampler: str = "auto",
        seed: int = 0,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        negative_prompt: str = "",
        **settings: Any,
    ) -> PipelineOutput:
        """Make images.

        Image i depends on (seed, i), its class and the settings alone. It is the image i that
        `sample.py --num-samples` makes of the same classes, bit for bit.

        Args:
            classes: Names or ids of classes, one an image; prompts, for a run with captions; None:
                all classes that have images.
            num_images: Their number: classes are taken in turn; unless given, one of each.
            guidance_scale: Scale of classifier-free guidance; 1: none.
            num_inference_steps: Steps of the sampler; unless given, as in `sample.py`.
            sampler: auto, ddpm, ddim, euler, heun or dpmpp_2m.
            seed: 0 or more.
            output_type: pil, pt, np or latent: see `PipelineOutput`.
            callback_on_step_end: Called as (pipe, step, timestep, {"latents": x}) after each step
                of each batch; timestep goes from 1000 to 0. If it returns {"latents": other},
                sampling continues from these.
            negative_prompt: Caption to lead away from, for a run with captions.
            settings: Others of `dit sample`: batch_size, spacing, cfg_interval, cfg_channels, eta,
                variance, guide, classifier, classifier_scale, block_cache, precision.

        Raises:
            UserError: An unknown class, or settings that the run does not have.

        >>> out = pipe(["cat", 7], guidance_scale=1.5, num_inference_steps=25)  # doctest: +SKIP
        >>> out.images[1].save("seven.png")                                     # doctest: +SKIP
        """
        if output_type not in get_args(OutputType):
            kinds = ", ".join(get_args(OutputType))
            do = did_you_mean(str(output_type), get_args(OutputType))
            raise UserError(f"output_type {output_type!r}", f"one of {kinds}", do)
        with python_names():
            pipeline, labels = self.prepare(
                classes,
                num_images=num_images,
                callback_on_step_end=callback_on_step_end,
                negative_prompt=negative_prompt,
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                sampler=sampler,
                seed=seed,
                **settings,
            )
            return PipelineOutput(_make(pipeline, labels, output_type), labels)

    def to(self, device: str | torch.device) -> "Pipeline":
        """Move network, autoencoder and text encoder to a device; return the pipeline.

        A guide is loaded by each call, to the same device. No call may be in progress.

        Raises:
            UserError: This machine has no such device.

        >>> pipe = dit.Pipeline.from_pretrained("mine", "cpu").to("cuda")  # doctest: +SKIP
        """
        self.run = move_run(self.run, find_device(device))
        return self

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        format: Literal["dit", "diffusers"] = "dit",
        license: str | None = None,
    ) -> Path:
        """Write weights and model card into a folder, for `from_pretrained`; return the folder.

        Args:
            format: diffusers: a folder that diffusers' `DiffusionPipeline.from_pretrained` loads.
            license: Of the weights, such as mit, for the model card.

        >>> pipe.save_pretrained("my-model")                             # doctest: +SKIP
        """
        if format not in ("dit", "diffusers"):
            raise UserError(f"format {format!r}", "dit or diffusers", "")
        from dit.export.diffusers import export_diffusers
        from dit.export.folder import save_folder
        from dit.export.model_card import About

        save = export_diffusers if format == "diffusers" else save_folder
        with python_names({"out": "folder", "to": "format"}):
            return save(self.run, Path(folder), about=About(license))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload weights and model card to the Hugging Face hub; return the address.

        >>> pipe.push_to_hub("owner/name", private=True, license="mit")  # doctest: +SKIP
        """
        from dit.export.hub import push_to_hub

        with python_names({"repo": "repo_id"}):
            return push_to_hub(self.run, repo_id, private=private, token=token, license=license)

    def prepare(
        self,
        classes: Classes = None,
        *,
        num_images: int | None = None,
        callback_on_step_end: Callback | None = None,
        negative_prompt: str = "",
        **settings: Any,
    ) -> tuple[SamplingPipeline, list[int]]:
        """Return what makes the images of a call, and their class ids [N]; nothing is sampled yet.

        Arguments are those of a call; errors name flags.
        """
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            given = f"callback_on_step_end of type {type(callback_on_step_end).__name__}"
            raise UserError(given, "a function", "")
        config = sampler_settings(**settings)
        run, labels = self._resolve(classes, negative_prompt)
        labels = _repeat(labels, num_images)
        config = replace(config, batch_size=min(config.batch_size, len(labels)))
        pipeline = build_pipeline(run, config)
        rows = 2 if config.cfg_scale != 1 and not config.guide else 1
        require_samples_fit(run, config.batch_size, config.precision, rows)
        self._encode_captions(run, labels)
        if callback_on_step_end:
            pipeline = with_step_callback(pipeline, self._observer(callback_on_step_end))
        return pipeline, labels

    def _resolve(self, classes: Classes, negative: str) -> tuple[LoadedRun, list[int]]:
        """Return the run, with prompts as its classes if there are any, and class ids."""
        if classes is None:
            run = with_prompts(self.run, (), negative) if negative else self.run
            return run, run.card.ids
        given = _as_list(classes)
        if not given:
            raise UserError("no classes", "one or more", "pass None for all of them")
        values = [_class_value(one) for one in given]
        texts = [one for one in values if isinstance(one, str)]
        if isinstance(self.run.denoise.network, Captioned) and texts:
            if len(texts) < len(values):
                raise UserError("prompts and ids in one call", "one or the other", "")
            return with_prompts(self.run, texts, negative), list(range(len(texts)))
        run = with_prompts(self.run, (), negative) if negative else self.run
        return run, [find_class(one, run.card) for one in values]

    def _encode_captions(self, run: LoadedRun, labels: list[int]) -> None:
        """Encode captions now: tokenizers are changed by their first call."""
        network = run.denoise.network
        if isinstance(network, Captioned):
            with self._encoding:
                network.captions(torch.tensor(labels))

    def _observer(self, callback: Callback) -> Callable[[int, float, Tensor], Tensor | None]:
        def observe(step: int, time: float, latents: Tensor) -> Tensor | None:
            returned = callback(self, step, time, {"latents": latents})
            replaced = returned.get("latents") if returned else None
            shape = getattr(replaced, "shape", None)
            if replaced is not None and shape != latents.shape:
                found = type(replaced).__name__ if shape is None else list(shape)
                given = f"callback_on_step_end returned latents {found}"
                raise UserError(given, f"{list(latents.shape)}, as it got them", "")
            return replaced

        return observe


def load_trained(
    path: Path,
    device: torch.device,
    image_size: Size | None = None,
    module: nn.Module | None = None,
) -> LoadedRun:
    """Load a run as `load_run` does; errors name arguments."""
    with python_names():
        return load_run(path, device, checked_size(image_size), module)


def _as_list(classes: Any) -> list[Any]:
    """Return the elements of a list, an array or a tensor; of one class alone, a list of it."""
    if isinstance(classes, str) or getattr(classes, "ndim", 1) == 0:
        return [classes]
    try:
        return [*classes]
    except TypeError:
        return [classes]


def _class_value(given: Any) -> str | int:
    """Return a class as text or whole number; refuse other types, truth values among them."""
    value = given.item() if isinstance(given, np.generic | Tensor) and given.ndim == 0 else given
    value = plain_value("a class", value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        kind = type(given).__name__
        raise UserError(f"class {given!r} of type {kind}", "a name or a whole number", "")
    return value


def _repeat(labels: list[int], count: int | None) -> list[int]:
    """Return so many labels, taken in turn; one of each if None."""
    if count is None:
        return labels
    value = plain_value("num_images", count)
    if type(value) is not int or value < 1:
        raise UserError(f"num_images {count!r}", "a whole number, 1 or more", "")
    return [labels[i % len(labels)] for i in range(value)]


def _make(pipeline: SamplingPipeline, labels: list[int], output_type: OutputType) -> Any:
    """Return images, or latents, of class ids."""
    y, indices = torch.tensor(labels), torch.arange(len(labels))
    if output_type == "latent":
        latents = []
        size = pipeline.settings.batch_size
        for part, i in zip(y.split(size), indices.split(size), strict=True):
            latents.append(sample_latents(pipeline, part, i))
            require_finite(latents[-1], part, i)
        # outside of inference mode, for code that trains on them
        return torch.cat(latents).clone()

    pixels = generate(pipeline, y, indices)  # uint8 [N, 3, H, W]
    channels_last = pixels.permute(0, 2, 3, 1).numpy()
    if output_type == "pil":
        return [Image.fromarray(image) for image in channels_last]
    if output_type == "np":
        return channels_last.astype(np.float32) / MOST_PIXELS
    return pixels.float() / MOST_PIXELS
