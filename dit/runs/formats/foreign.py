"""Tell whose weights a file has, and read it: DiT, SiT and REPA name their tensors alike."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dit.config import TrainConfig
from dit.errors import UserError
from dit.runs.card import NetworkSpec
from dit.runs.formats.dit_release import OUTPUT, infer_spec, release_config, with_null_class
from dit.runs.formats.foreign_checkpoint import ForeignCheckpoint, read_checkpoint
from dit.runs.formats.lightningdit import (
    block_of,
    from_lightningdit,
    lightningdit_config,
    modern_layers,
    time_shift,
    usual_image_size,
)
from dit.runs.formats.sit import (
    PROJECTORS,
    flow_config,
    flow_spec,
    from_sit,
    velocity_rows,
    with_velocity_only,
    without_projectors,
)
from dit.runs.formats.state_dict import StateDict, as_float32, check_shapes
from dit.utils.image_size import sides

Format = Literal["dit", "sit", "repa", "lightningdit"]
NAMES: dict[Format, str] = {
    "dit": "DiT",
    "sit": "SiT",
    "repa": "REPA",
    "lightningdit": "LightningDiT",
}

# Values of the training scripts' flags that can be imported; all others are other processes.
TRAINED_WITH: dict[Format, dict[str, Any]] = {
    "dit": {"noise_schedule": "linear", "predict_xstart": False, "diffusion_steps": 1000},
    "sit": {"path_type": "Linear", "prediction": "velocity"},
    "repa": {"path_type": "linear", "prediction": "v"},
    "lightningdit": {
        "path_type": "Linear",
        "prediction": "velocity",
        "latent_norm": True,
        "latent_multiplier": 1,
    },
}


@dataclass(frozen=True)
class ForeignNetwork:
    """A network of another program, in the convention of this package.

    Args:
        spec: its description.
        state_dict: its weights, in float32.
        format: whose it was.
        label_dropout: of its training; 0 if it has no null class.
        image_size: of its training, if the file or its format says it.
        time_shift: of sampling.
        notes: what was read, and what was assumed.
    """

    spec: NetworkSpec
    state_dict: StateDict
    format: Format
    label_dropout: float
    image_size: int | None
    time_shift: float
    notes: list[str]

    def config(self, vae: str) -> TrainConfig:
        """Return the configuration that trains such a network."""
        release = release_config(self.spec, vae, self.label_dropout, self.image_size)
        if self.format == "dit":
            return release
        flow = flow_config(release)
        if self.format == "lightningdit":
            return lightningdit_config(flow, self.spec, self.time_shift)
        return flow


def read_foreign(
    file: Path, asked: Format | None = None, num_classes: int | None = None
) -> ForeignNetwork:
    """Read a file of DiT, SiT, REPA or LightningDiT.

    Args:
        file: a state dict or a training checkpoint.
        asked: whose it is, where the file cannot tell.
        num_classes: where the file cannot tell whether its label table has a null class.
    """
    checkpoint = read_checkpoint(file)
    format, because = _choose_format(checkpoint, asked)
    _check_flags(checkpoint, format)

    state_dict, spec = dit_tensors(checkpoint)
    classes, assumed = _count_classes(checkpoint, spec.num_classes + 1, num_classes)
    has_null_class = classes == spec.num_classes
    state_dict = with_null_class(as_float32(state_dict, file), classes)
    spec = replace(spec, num_classes=classes)

    if format != "dit":
        state_dict = with_velocity_only(state_dict, spec)
        spec = flow_spec(spec)
    if format in ("sit", "lightningdit"):
        state_dict = from_sit(state_dict)
    return ForeignNetwork(
        spec=spec,
        state_dict=state_dict,
        format=format,
        label_dropout=_label_dropout(checkpoint.flags) if has_null_class else 0.0,
        image_size=_image_size(checkpoint.flags, spec, format),
        time_shift=time_shift(checkpoint.flags) if format == "lightningdit" else 1.0,
        notes=[f"read as {NAMES[format]}: {because}", checkpoint.origin, assumed],
    )


def dit_tensors(checkpoint: ForeignCheckpoint) -> tuple[StateDict, NetworkSpec]:
    """Return the tensors that a DiT of ours has too, by its names, and that DiT's description."""
    state_dict = without_projectors(checkpoint.state_dict)
    try:
        spec = infer_spec(state_dict)
        if modern_layers(state_dict):
            spec = replace(spec, block=block_of(state_dict, spec))
            state_dict = from_lightningdit(state_dict)
        check_shapes(state_dict, spec)
    except UserError as error:
        raise UserError(f"{checkpoint.file}: {error.given}", error.expected, error.do) from None
    return state_dict, spec


# -- whose it is -----------------------------------------------------------------------------------


def recognise(checkpoint: ForeignCheckpoint) -> tuple[Format | None, str, bool]:
    """Return whose a checkpoint is, if anything tells; why; and whether that is certain."""
    flags = checkpoint.flags
    model = str(flags.get("model", ""))
    if any(name.startswith(PROJECTORS) for name in checkpoint.state_dict):
        return "repa", "it has REPA's projectors", True
    if modern := modern_layers(checkpoint.state_dict):
        return "lightningdit", f"it has {modern[0]}", True
    if str(flags.get("model_type", "")).startswith("LightningDiT"):
        return "lightningdit", f"its flags say model_type {flags['model_type']}", True
    # not `prediction` alone: scripts for a DiT may have a flag of that name
    if "path_type" in flags:
        said = ", ".join(f"{k} {flags[k]}" for k in ("path_type", "prediction") if k in flags)
        # the two scripts spell the same choices differently
        is_repa = str(flags["path_type"]).islower()
        return "repa" if is_repa else "sit", f"its flags say {said}", True
    if model.startswith("SiT"):
        return "sit", f"its flags say model {model}", False
    if model.startswith("DiT"):
        return "dit", f"its flags say model {model}", False
    return None, "nothing in it tells a DiT from a SiT", False


def _choose_format(checkpoint: ForeignCheckpoint, asked: Format | None) -> tuple[Format, str]:
    """Return whose the file is, and why; refuse to guess."""
    found, because, certain = recognise(checkpoint)
    if asked:
        if certain and found != asked:
            raise UserError(
                f"--format {asked} for {checkpoint.file}: {because}",
                f"--format {found}",
                "drop --format",
            )
        return asked, f"--format {asked}"
    if found:
        return found, because

    unlike_dit = _unlike_a_dit(checkpoint)
    if checkpoint.keys and not unlike_dit:
        # scripts of the release save dictionaries, those of SiT and REPA with flags that tell
        return "dit", f"{because}; --format sit or --format repa would read it as one of these"
    reason = unlike_dit or "a DiT and a SiT have the same tensors, and nothing in the file tells"
    raise UserError(
        f"{checkpoint.file} may be a DiT or a SiT: {reason}",
        "to be told whose it is",
        "pass --format dit for weights of the DiT release, --format sit for SiT, --format repa for "
        "REPA, --format lightningdit for LightningDiT",
    )


def _unlike_a_dit(checkpoint: ForeignCheckpoint) -> str:
    """Say what in the last layer a DiT's training would not have left so; empty if nothing."""
    state_dict, spec = dit_tensors(checkpoint)
    if not spec.learn_sigma:
        return "it has no outputs for the variance, which the DiT release always learns"
    # SiT computes them too, from weights that start at zero, and drops them: no gradient moves them
    layer = state_dict[f"{OUTPUT}.weight"]
    if layer.any() and layer.count_nonzero() == velocity_rows(layer, spec).count_nonzero():
        return "its outputs for the variance are zero, as SiT's training leaves them"
    return ""


def _check_flags(checkpoint: ForeignCheckpoint, format: Format) -> None:
    """Refuse networks that were trained on another process or for another prediction."""
    for name, value in TRAINED_WITH[format].items():
        given = checkpoint.flags.get(name)
        if given is not None and given != value:
            raise UserError(
                f"{checkpoint.file} was trained with {name} {given}",
                f"{name} {value} of {NAMES[format]}",
                "only this can be imported",
            )


# -- what else its flags say -----------------------------------------------------------------------


def _count_classes(checkpoint: ForeignCheckpoint, rows: int, asked: int | None) -> tuple[int, str]:
    """Return the number of classes, of a label table with a null class or without; and a note."""
    said = checkpoint.flags.get("num_classes")
    given, note = f"--num-classes {asked}", ""
    if asked is not None:
        classes = asked
    elif isinstance(said, int):
        classes, given = said, f"{said} classes, as its flags say"
    elif checkpoint.flags.get("class_dropout_prob") == 0:
        return rows, ""
    elif rows % 10 == 0:
        # a round number of rows is rather a number of classes
        raise UserError(
            f"{checkpoint.file} has a label table of {rows} rows",
            "to be told whether the last one is the null class of guidance",
            f"pass --num-classes {rows - 1} if it is, or --num-classes {rows}",
        )
    else:
        classes = rows - 1
        note = (
            f"the last of {rows} labels is taken for the null class; --num-classes {rows} if it "
            "was trained without label dropout"
        )

    if classes not in (rows - 1, rows):
        raise UserError(
            f"{given}, for {checkpoint.file} with a label table of {rows} rows",
            f"{rows - 1} classes and a null class, or {rows} classes",
            f"pass --num-classes {rows - 1} or {rows}",
        )
    return classes, note


def _label_dropout(flags: Mapping[str, Any]) -> float:
    given = flags.get("class_dropout_prob")
    if isinstance(given, int | float) and 0 <= given < 1:
        return float(given)
    return 0.1


def _image_size(flags: Mapping[str, Any], spec: NetworkSpec, format: Format) -> int | None:
    given = flags.get("image_size", flags.get("resolution"))
    is_size = isinstance(given, int) and given > 0 and given % sides(spec.input_size)[0] == 0
    if is_size:
        return given
    return usual_image_size(spec) if format == "lightningdit" else None
