"""Flags of the commands that read runs and weights."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dit.config.validation import require_lengths, require_limits, require_range
from dit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert a .pt file of the original DiT release into weights for sample.py and evaluate.py."""

    file: Positional[Path]
    """The .pt file; no code in it is run."""
    out: Positional[Path]
    """The .safetensors file to write."""
    vae: str = "stabilityai/sd-vae-ft-ema"
    """Autoencoder of the network's latents."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Compute the EMA of any length from the snapshots of a run trained with --ema-lengths."""

    run: Positional[Path]
    """Run directory."""
    length: tuple[float, ...]
    """Lengths relative to the steps done (sigma_rel of 2312.02696), one or several, such as 0.05
    0.1."""
    step: int | None = None
    """Step at which the average ends, one with snapshots; the last of them unless given."""
    out: Path | None = None
    """The .safetensors file to write, for one length; unless given, ema-length-L-step-N.safetensors
    in the run."""

    def __post_init__(self) -> None:
        require_range(self, ("length",), lambda v: len(v) > 0, "one length or more")
        require_limits(self)
        require_lengths("--length", self.length)
        if self.out and len(self.length) > 1:
            given = f"--out {self.out} with {len(self.length)} lengths"
            raise UserError(given, "one length for one file", "drop --out, or pass one --length")
        if self.out and self.out.suffix != ".safetensors":
            raise UserError(f"--out {self.out}", "a file that ends in .safetensors", "change --out")


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Show what a run, checkpoint, weights file or folder of latents is, and check its files."""

    path: Positional[Path]
    """Run directory, checkpoint directory, .safetensors file, a .pt file of the original DiT
    release, a folder of `dit encode`, or a folder of `dit train-vae`."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write RUN/report.html at any time: curves, samples, scores, checkpoints and settings."""

    run: Positional[Path]
    """Run directory."""
