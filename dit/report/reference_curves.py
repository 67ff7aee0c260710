"""Reference curves of presets: what a run's training should look like.

They lie in reference/PRESET.json beside this file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from dit.config import TrainConfig, to_json
from dit.errors import UserError
from dit.report.text import counted
from dit.runs.logs import BY_TIME
from dit.utils.typed_json import read_json

FOLDER = Path(__file__).parent / "reference"
LOGGED = ("step", "loss", "grad_norm")  # of a line, beside losses by time
NEUTRAL = (
    "preset out resume seed sample_every sample_first ckpt_every log_every keep keep_every "
    "eval_every eval_samples eval_reference eval_extractor eval_weights ema_lengths ema_every "
    "dry_run compile precision grad_accum parallel recompute timeout wandb skip_damaged spike "
    "on_divergence max_skips"
)
"""Settings that move a curve no more than another seed does, if at all."""
RECENT = 0.1  # share of the steps, the last of which are compared

Line = Mapping[str, Any]


class ReferenceFile(TypedDict):
    """What is read of reference/PRESET.json; the rest is the record."""

    preset: str
    settings: dict[str, Any]
    runs: dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Reference:
    """Runs of a preset that differ in their seed alone.

    Args:
        settings: those that the runs share and that matter.
        runs: lines of each log, by seed.
        record: command, date, versions.
    """

    preset: str
    settings: Mapping[str, Any]
    runs: Mapping[str, Sequence[Line]]
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"preset {self.preset}, {counted(len(self.runs), 'seed')}"

    def to_json(self) -> dict[str, Any]:
        return {"preset": self.preset, **self.record, "settings": self.settings, "runs": self.runs}

    @staticmethod
    def read(file: Path) -> "Reference":
        expected = "reference curves written by benchmarks.reference_curves"
        values = read_json(file, ReferenceFile, expected, "take it from the repository")
        for lines in values["runs"].values():
            if not lines or not all("step" in line for line in lines):
                raise UserError(f"{file} has a run without steps", expected, "take another")
        record = {n: v for n, v in values.items() if n not in ReferenceFile.__annotations__}
        return Reference(values["preset"], values["settings"], values["runs"], record)


def find_reference(preset: str, folder: Path = FOLDER) -> Reference | None:
    file = folder / f"{preset}.json"
    return Reference.read(file) if file.exists() else None


def settings_that_matter(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that must be equal for two curves to be comparable."""
    neutral = NEUTRAL.split()
    return {name: value for name, value in to_json(config).items() if name not in neutral}


def differences(config: TrainConfig, reference: Reference) -> list[str]:
    """Return the settings of a run that are not those of the reference, with both values."""
    ours = settings_that_matter(config)
    return [
        f"{name} {ours[name]} instead of {value}"
        for name, value in reference.settings.items()
        if name in ours and ours[name] != value
    ]


def essence(lines: Sequence[Line]) -> list[dict[str, float]]:
    """Return the part of a log that a reference keeps."""

    def is_kept(name: str) -> bool:
        return name in LOGGED or name.startswith(BY_TIME)

    with_loss = (line for line in lines if "loss" in line)
    return [{name: line[name] for name in line if is_kept(name)} for line in with_loss]


def recent_loss(lines: Sequence[Line], step: int) -> float | None:
    """Return the mean loss of the last tenth of the steps up to `step`; None if none is logged."""
    first = (1 - RECENT) * step
    losses = [line["loss"] for line in lines if first < line["step"] <= step and "loss" in line]
    return sum(losses) / len(losses) if losses else None


def verdict(lines: Sequence[Line], reference: Reference) -> str:
    """Return a sentence with a run's loss beside that of the reference at the same steps."""
    # a run that stopped early is compared with the reference at that step
    longest = max(run[-1]["step"] for run in reference.runs.values())
    end = min(lines[-1]["step"], longest)
    ours = recent_loss(lines, end)
    losses = [recent_loss(run, end) for run in reference.runs.values()]
    theirs = [f"{loss:.4f}" for loss in losses if loss is not None]
    if ours is None or not theirs:
        return f"The run has logged no loss to compare with {reference.name} yet."

    steps = f"steps {round((1 - RECENT) * end) + 1:,} to {end:,}"
    return (
        f"Mean loss of {steps}: {ours:.4f} in this run, {' and '.join(theirs)} in the reference "
        f"({reference.name})."
    )
