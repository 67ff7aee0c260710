"""Flags of what is done to runs and weights that are there."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dit.config.validation import require_lengths, require_range
from dit.errors import UserError


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
class EmaConfig:
    """Make the EMA of any length of a run that was trained with --ema-lengths, out of the snapshots that these left."""

    run: Positional[Path]
    """Run directory."""
    length: tuple[float, ...]
    """Lengths relative to the steps done (sigma_rel of 2312.02696), one or several, such as 0.05 0.1."""
    step: int | None = None
    """Step at which the average ends, one with snapshots; the last of them unless given."""
    out: Path | None = None
    """The .safetensors file to write, of one length; unless given, ema-length-L-step-N.safetensors in the run."""

    def __post_init__(self) -> None:
        require_range(self, ("length",), lambda v: len(v) > 0, "one length or more")
        require_lengths("--length", self.length)
        if self.out and len(self.length) > 1:
            raise UserError(
                f"--out {self.out} with {len(self.length)} lengths",
                "one length for one file",
                "drop --out, or pass one --length",
            )
        if self.out and self.out.suffix != ".safetensors":
            raise UserError(f"--out {self.out}", "a file that ends in .safetensors", "change --out")


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Tell what a run, a checkpoint, a file of weights or a first stage is, and whether it is intact."""

    path: Positional[Path]
    """Run directory, checkpoint directory, .safetensors file, a .pt file of the original DiT release, or a folder of
    `dit train-vae`."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Compare every file of a run or of a folder of latents with its checksum, and name those that are damaged."""

    path: Positional[Path]
    """Run directory, or folder of `dit encode`."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a run's page, RUN/report.html: curves, samples, scores, checkpoints, settings; at any time."""

    run: Positional[Path]
    """Run directory."""
