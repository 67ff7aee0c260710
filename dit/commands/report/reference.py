"""Reference curves of presets: what others' training should look like.

They lie in docs/reference/PRESET.json of the repository; an installed package has none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.config import TrainConfig, to_json
from dit.runs.metrics import BY_TIME
from dit.utils.files import reraise_as_user_error

FOLDER = Path(__file__).parents[3] / "docs" / "reference"
LOGGED = ("step", "loss", "grad_norm")  # of a line, beside losses by time
NEUTRAL = {
    "preset",
    "out",
    "resume",
    "seed",
    "sample_every",
    "ckpt_every",
    "log_every",
    "keep",
    "keep_every",
    "eval_every",
    "eval_samples",
    "eval_reference",
    "eval_extractor",
    "eval_weights",
    "ema_lengths",
    "ema_every",
    "dry_run",
    "compile",
    "precision",
    "grad_accum",
    "parallel",
    "recompute",
    "timeout",
    "wandb",
    "skip_damaged",
    "spike",
    "on_divergence",
    "max_skips",
}
"""Settings that move a curve no more than another seed does, if at all."""
RECENT = 0.1  # share of the steps, the last of which are compared

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Reference:
    """Runs of a preset that differ in their seed alone.

    Args:
        settings: that they share and that matter.
        runs: lines of each one's log, by seed.
        made: command, date, versions.
    """

    preset: str
    settings: Mapping[str, Any]
    runs: Mapping[str, Sequence[Line]]
    made: Mapping[str, Any]

    @property
    def name(self) -> str:
        """In words."""
        return f"preset {self.preset}, {len(self.runs)} seed{'s' * (len(self.runs) != 1)}"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"preset": self.preset, **self.made, "settings": self.settings, "runs": self.runs}

    @staticmethod
    def read(file: Path) -> "Reference":
        """The inverse of `to_json`.

        Raises:
            UserError: the file is damaged.
        """
        with reraise_as_user_error(
            file,
            "reference curves written by benchmarks.reference_curves",
            "take it from the repository",
        ):
            values = json.loads(file.read_text())
            preset, settings, runs = (values.pop(name) for name in ("preset", "settings", "runs"))
            return Reference(preset, settings, runs, values)


def find_reference(preset: str, folder: Path = FOLDER) -> Reference | None:
    """Of a preset, where there is one."""
    file = folder / f"{preset}.json"
    return Reference.read(file) if file.exists() else None


def settings_that_matter(config: TrainConfig) -> dict[str, Any]:
    """What has to be equal for two curves to be comparable."""
    return {name: value for name, value in to_json(config).items() if name not in NEUTRAL}


def differences(config: TrainConfig, reference: Reference) -> list[str]:
    """Settings of a run that are not those of the reference, both values of each."""
    ours = settings_that_matter(config)
    return [
        f"{name} {ours[name]} instead of {value}"
        for name, value in reference.settings.items()
        if name in ours and ours[name] != value
    ]


def essence(lines: Sequence[Line]) -> list[dict[str, float]]:
    """What a reference keeps of a log."""
    return [
        {name: value for name, value in line.items() if name in LOGGED or name.startswith(BY_TIME)}
        for line in lines
        if "loss" in line
    ]


def recent_loss(lines: Sequence[Line], step: int) -> float | None:
    """Mean loss of the last tenth of the steps up to `step`; None where none was logged."""
    losses = [
        line["loss"]
        for line in lines
        if (1 - RECENT) * step < line["step"] <= step and "loss" in line
    ]
    return sum(losses) / len(losses) if losses else None


def verdict(lines: Sequence[Line], reference: Reference) -> str:
    """A run's loss beside that of the reference at the same steps, in words."""
    end = min(lines[-1]["step"], max(run[-1]["step"] for run in reference.runs.values()))
    ours = recent_loss(lines, end)
    theirs = [
        loss for run in reference.runs.values() if (loss := recent_loss(run, end)) is not None
    ]
    if ours is None or not theirs:
        return f"The run has logged no loss to compare with {reference.name} yet."
    return (
        f"Mean loss of steps {round((1 - RECENT) * end) + 1:,} to {end:,}: {ours:.4f} here, "
        f"{' and '.join(f'{loss:.4f}' for loss in theirs)} in the reference ({reference.name})."
    )
