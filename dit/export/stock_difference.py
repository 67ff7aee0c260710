"""How far the images of diffusers' own DiTPipeline are from ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit.config import SamplerConfig
from dit.encoders.autoencoder import quiet_diffusers
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import build_pipeline
from dit.training.monitoring.previews import preview_settings
from dit.utils.pictures import spread

SEEDS, STEPS = 4, 25
UNSEEN = 4
"""Differences up to this one, of 255, cannot be seen. In sRGB four steps change the lightness L* of
any gray by at most 2.03; 2.3 is just noticeable, for large patches side by side (Mahy et al. 1994,
Color Research and Application 19)."""


@dataclass(frozen=True)
class Difference:
    """How the images of two samplers differ, in steps of 0 … 255."""

    largest: int
    mean: float
    visible: float  # share of the values that differ by more than UNSEEN
    scale: float  # of guidance

    def __str__(self) -> str:
        return (
            f"DiTPipeline's images and those of dpmpp_2m here, {SEEDS} seeds of equal noise, "
            f"{STEPS} steps, guidance {self.scale:g}: difference at most {self.largest}, on "
            f"average {self.mean:.2g} of 255. {self._judged()} It comes from the times, their "
            "frequencies and their grid; null class and latent statistics add rounding alone"
        )

    def _judged(self) -> str:
        if self.largest <= UNSEEN:
            return f"Up to {UNSEEN} cannot be seen."
        return f"Up to {UNSEEN} cannot be seen; {self.visible:.1%} of the values differ by more."


def measure(run: LoadedRun, folder: Path) -> Difference:
    """Return the difference between the images of a written folder and ours, from equal noise."""
    from diffusers import DiTPipeline

    scale = preview_settings(run.card).cfg_scale
    labels = (spread(run.card.ids, SEEDS) * SEEDS)[:SEEDS]
    # it warns of ids that are texts, as in every JSON file
    with quiet_diffusers():
        pipe = DiTPipeline.from_pretrained(folder).to(run.device)
    pipe.set_progress_bar_config(disable=True)
    theirs: Any = pipe(
        labels,
        guidance_scale=scale,
        num_inference_steps=STEPS,
        generator=_generators(),
        output_type="np",
    )
    images = torch.from_numpy(theirs.images).permute(0, 3, 1, 2).mul(255).round().int()

    settings = SamplerConfig(sampler="dpmpp_2m", steps=STEPS, cfg_scale=scale, precision="fp32")
    pipeline = build_pipeline(run, settings, labels)
    noise = [torch.randn((1, *run.latent_shape), generator=one) for one in _generators()]
    x, y = torch.cat(noise).to(run.device), torch.tensor(labels, device=run.device)
    with torch.inference_mode():
        latents = pipeline.sampler(
            pipeline.denoise, pipeline.process, x, y, pipeline.times, lambda: x
        )
    difference = (run.autoencoder.decode(latents).cpu().int() - images).abs()
    mean, visible = difference.float().mean().item(), (difference > UNSEEN).float().mean().item()
    return Difference(int(difference.max()), mean, visible, scale)


def _generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
