"""Flags of what is done to runs and weights that are there."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Turn a .pt file of the original DiT release into weights that sample.py and evaluate.py take."""

    file: Positional[Path]
    """The .pt file; no code in it is run."""
    out: Positional[Path]
    """The .safetensors file to write."""
    vae: str = "stabilityai/sd-vae-ft-ema"
    """Autoencoder of the network's latents."""


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Tell what a run, a checkpoint, a file of weights or a first stage is, and whether it is intact."""

    path: Positional[Path]
    """Run directory, checkpoint directory, .safetensors file, a .pt file of the original DiT release, or a folder of
    `dit train-vae`."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a run's page, RUN/report.html: curves, samples, scores, checkpoints, settings; at any time."""

    run: Positional[Path]
    """Run directory."""
