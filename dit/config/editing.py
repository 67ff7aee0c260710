"""Flags of `dit edit`: inpainting, variations of an image, and interpolation between samples."""

from dataclasses import dataclass
from pathlib import Path

from dit.config.sampling import SAMPLER_RANGES, SamplerConfig, require_captions_fit
from dit.config.validation import (
    POSITIVE,
    SAMPLING_STEPS,
    Range,
    require_none_of,
    require_use,
    require_values,
    require_words,
)

EDITS = ("inpaint", "variations", "interpolate")
ONE_EDIT = "one of --inpaint IMAGE, --variations IMAGE and --interpolate"
EDIT_RANGES: dict[tuple[str, ...], Range] = {
    **SAMPLER_RANGES,
    ("per_class",): POSITIVE,
    ("strength",): (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    ("seeds",): (lambda v: v is None or min(v) >= 0, "two numbers, 0 or more"),
    ("frames",): (lambda v: v > 1, "2 or more"),
}
"""Ranges of the flags of EditConfig."""


@dataclass(frozen=True, kw_only=True)
class EditConfig(SamplerConfig):
    """Edit images with a trained run: inpaint one, vary one, or interpolate between samples."""

    # -- edit ------------------------------------------------------------------------------------
    run: Path
    """Run directory, checkpoint directory, file of EMA weights (.safetensors), folder of
    `dit export` or of a DiT of diffusers, or OWNER/NAME of the Hugging Face hub."""
    inpaint: Path | None = None
    """An image to paint anew where --mask is white. Its center is cropped to the run's size."""
    mask: Path | None = None
    """With --inpaint: an image of the same size, white where to paint, black where the image is
    kept. In every step the prediction is replaced by the image there (2212.00490)."""
    paste: bool = True
    """With --inpaint: take the pixels under the black of the mask from the image itself. Without,
    they are the autoencoder's reconstruction, which has no seams."""
    variations: Path | None = None
    """An image to vary: it is noised, then sampling ends as usual (SDEdit, 2108.01073)."""
    strength: float = 0.5
    """With --variations: share of the sampling steps that are taken. 0 returns the image, through
    the autoencoder; 1 starts from noise."""
    interpolate: bool = False
    """Draw the way from one sample to another: between two --classes or prompts, or two --seeds, or
    both. Noises lie on an arc (2010.02502), predictions of two classes on a line (2206.01714)."""
    seeds: tuple[int, int] | None = None
    """With --interpolate: seeds of both ends; unless given, --seed for two classes, else --seed and
    the next."""
    frames: int = 8
    """With --interpolate: number of images from end to end."""

    # -- images ----------------------------------------------------------------------------------
    classes: tuple[str, ...] | None = None
    """Names or ids of classes such as cat dog or 0,1,2, a row each; of --interpolate the two ends.
    Unless given, at most 16 of all, or two."""
    prompt: tuple[str, ...] | None = None
    """Captions, for a run with --conditioning text, such as "a seven" "a one"."""
    negative_prompt: str = ""
    """Caption that --cfg-scale leads away from, for a run with --conditioning text."""
    per_class: int = 4
    """Images of each class or prompt; with --interpolate, rows."""
    out: Path | None = None
    """Folder of grid.png and of the images one by one; unless given, in the run's edits/."""

    def __post_init__(self) -> None:
        require_values(self, EDIT_RANGES, steps=SAMPLING_STEPS)
        super().__post_init__()
        require_words(self)
        require_captions_fit(self)

        chosen = [name for name in EDITS if getattr(self, name)]
        given = " with ".join(f"--{name}" for name in chosen) or "no edit"
        painted = self.inpaint is not None
        require_none_of(
            [
                (len(chosen) != 1, given, ONE_EDIT, "pass one of them"),
                (
                    painted and not self.mask,
                    f"--inpaint {self.inpaint} without --mask",
                    "a mask of the image, white where to paint",
                    "pass --mask MASK.png",
                ),
            ]
        )
        edit = f"with --{chosen[0]}"
        require_use(self, ("mask", "paste"), painted, edit, "--inpaint")
        require_use(self, ("strength",), self.variations is not None, edit, "--variations")
        require_use(self, ("seeds", "frames"), self.interpolate, edit, "--interpolate")
        require_use(
            self, ("seed",), self.seeds is None, f"with --seeds {self._seeds}", "no --seeds"
        )

    @property
    def _seeds(self) -> str:
        return " ".join(map(str, self.seeds or ()))

    @property
    def edit(self) -> str:
        """The edit that was chosen: inpaint, variations or interpolate."""
        return next(name for name in EDITS if getattr(self, name))
