"""The pipeline of a network of the package `dit`, for diffusers: it makes what `dit sample` makes.

pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
pipe(["cat", 7], guidance_scale=1.5, num_inference_steps=25, seed=0).images
"""

from importlib import import_module
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

try:
    import_module("dit.export.network")
except ImportError as error:
    raise ImportError(
        f"this pipeline computes with the package dit of diffusion transformers, not with another "
        f"dit ({error}): pip install diffusion-transformer"
    ) from error


class RunPipeline(DiffusionPipeline):
    """Images of classes, which are names or ids. A list may be longer than a batch."""

    transformer: Any
    vae: Any
    _optional_components = ["vae"]  # noqa: RUF012 - a network of pixels has none

    def __init__(self, transformer, vae=None, id2label=None):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(id2label=id2label)

    def __call__(
        self,
        class_labels,
        guidance_scale=1.0,
        num_inference_steps=None,
        seed=0,
        generator=None,  # if given, its next number is the seed
        output_type="pil",  # or np [N, H, W, 3], pt [N, 3, H, W]: 0 … 1
        return_dict=True,
        **settings,  # as of dit.config.SamplerConfig: sampler, cfg_interval, batch_size, …
    ):
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type {output_type!r}; expected pil, np or pt")
        if generator is not None and not isinstance(generator, torch.Generator):
            given = f"generator of type {type(generator).__name__}"
            raise ValueError(f"{given}; expected one torch.Generator: its next number is the seed")
        if generator is not None:
            device = generator.device
            seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
        settings |= dict(guidance_scale=guidance_scale, num_inference_steps=num_inference_steps)
        settings |= dict(seed=seed)
        images = self.transformer.sample(self.vae, class_labels, settings) / 255
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
