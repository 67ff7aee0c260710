"""Flags of the commands that read runs and weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dit.config.flag_names import flag_name
from dit.config.validation import require_lengths, require_use, require_values
from dit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert weights of DiT, SiT, REPA or LightningDiT, or a DiT of diffusers, for sample.py."""

    file: Positional[Path]
    """A .pt or .safetensors file: a state dict or a training checkpoint, whose EMA is taken. Or the
    folder of a DiT's pipeline of diffusers, here or OWNER/NAME on the hub. No code in it is run."""
    out: Positional[Path]
    """The .safetensors file to write."""
    format: Literal["dit", "sit", "repa", "lightningdit"] | None = None
    """Whose weights they are, where the file cannot tell: tensors of the first three have the same
    names, and a SiT read as a DiT gives noise. Published files of DiT and SiT need it."""
    classes: tuple[str, ...] | None = None
    """Names of the classes by id, such as cat dog or cat,dog, or a text file with one a line;
    unless given, ImageNet's for a network of 1000 classes, else the ids."""
    num_classes: int | None = None
    """Classes of the network, where the file cannot tell whether the last row of its label table
    is the null class of guidance."""
    vae: str | None = None
    """Autoencoder of the network's latents; unless given, that of a folder of diffusers, else
    stabilityai/sd-vae-ft-ema. A LightningDiT needs its own, such as VA-VAE in a folder of
    diffusers' layout."""
    latent_stats: Path | None = None
    """Of a LightningDiT: its latents_stats.pt, with mean and deviation of each channel."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise UserError(
                f"output {self.out}", "a file that ends in .safetensors", "change its name"
            )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Save a trained network as a folder for others, for diffusers, or on the Hugging Face hub."""

    run: Positional[Path]
    """What to export: whatever --run of sample.py takes."""
    to: Literal["folder", "diffusers", "hub"] = "folder"
    """folder: EMA weights, autoencoder, model card and a picture, to move and to pass as --run.
    diffusers: the same for DiffusionPipeline.from_pretrained, which then makes the same images.
    hub: upload the latter."""
    out: Path | None = None
    """The folder to write: new, empty, or of `dit export`."""
    repo: str | None = None
    """With --to hub: OWNER/NAME of the repository, created if it is not there. The token is that of
    `hf auth login`, or HF_TOKEN."""
    private: bool = False
    """With --to hub: a new repository is private."""
    stock: bool = False
    """With --to diffusers: for its own DiTPipeline, without this package. Only a plain DiT of
    classes can be; the difference of the images is measured and printed."""
    license: str | None = None
    """Licence of the weights, such as mit or cc-by-4.0, for the model card; unless given,
    unknown."""

    def __post_init__(self) -> None:
        hub = self.to == "hub"
        given = f"--to {self.to}"
        require_use(self, ("repo", "private"), hub, f"with {given}", "--to hub", "pass --to hub")
        require_use(self, ("out",), not hub, f"with {given}", "--to folder")
        diffusers = self.to == "diffusers"
        do = "pass --to diffusers"
        require_use(self, ("stock",), diffusers, f"with {given}", "--to diffusers", do)
        if hub and self.repo is None:
            raise UserError(f"{given} without --repo", "OWNER/NAME", "pass --repo OWNER/NAME")
        if not hub and self.out is None:
            raise UserError(f"{given} without --out", "the folder to write", "pass --out FOLDER")


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
        require_values(self, {("length",): (lambda v: len(v) > 0, "one length or more")})
        require_lengths(flag_name("length"), self.length)
        if self.out and len(self.length) > 1:
            given = f"--out {self.out} with {len(self.length)} lengths"
            raise UserError(given, "one length for one file", "drop --out, or pass one length")
        if self.out and self.out.suffix != ".safetensors":
            raise UserError(f"--out {self.out}", "a file that ends in .safetensors", "change --out")


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Show what a run, checkpoint, weights file or folder of latents is, and check its files."""

    path: Positional[Path]
    """Run directory, checkpoint directory, .safetensors file, a .pt file of DiT, SiT or REPA, a
    folder of `dit encode`, `dit train-vae`, `dit export` or of a DiT of diffusers, or OWNER/NAME of
    the hub."""
    classes: bool = False
    """Only list all classes, with id, name and images."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write RUN/report.html at any time: curves, samples, scores, checkpoints and settings."""

    run: Positional[Path]
    """Run directory."""
