"""An autoencoder of `dit train-vae`, or in diffusers' layout, in words."""

from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from dit.commands.info.model import Rows, numbers
from dit.commands.train_vae.checkpoint import has_checkpoint, read_stopped
from dit.encoders.autoencoder import CONFIG, KLCodec, VQCodec, load_autoencoder
from dit.encoders.psnr import describe_psnr
from dit.errors import UserError
from dit.models.registry import count_parameters
from dit.utils.files import shell_quote
from dit.utils.typed_json import read_json


class FirstStageReport(TypedDict):
    """What is read of the report of `dit train-vae`."""

    held_out: int
    scores: dict[str, float | str]


def is_first_stage(folder: Path) -> bool:
    """Whether a folder holds an autoencoder, or is of a training of one that was stopped."""
    if has_checkpoint(folder):
        return True
    try:
        return "_class_name" in read_json(folder / CONFIG, dict[str, Any], "", "")
    except UserError:
        return False


def first_stage_rows(folder: Path) -> Rows:
    """Return what an autoencoder of `dit train-vae`, or in diffusers' layout, is."""
    if has_checkpoint(folder):
        return _stopped_rows(folder)
    autoencoder = load_autoencoder(str(folder.absolute()))
    codec = autoencoder.codec
    assert isinstance(codec, KLCodec | VQCodec)
    kind = f"KL ({type(codec.network).__name__})"
    if isinstance(codec, VQCodec):
        kind = f"VQ ({type(codec.network).__name__}, {len(codec.codebook):,} entries)"
    mean = numbers(autoencoder.shift.flatten().tolist())
    deviation = numbers((1 / autoencoder.scale).flatten().tolist())
    rows = [
        ("first stage", str(folder)),
        ("kind", kind),
        ("parameters", f"{count_parameters(codec.network):,}"),
        ("factor", f"{autoencoder.factor} pixels a latent, along a side"),
        ("latent channels", str(autoencoder.channels)),
        ("latents scaled by", f"mean {mean}, deviation {deviation}"),
        ("weights", f"SHA-256 {autoencoder.checksum}"),
    ]
    # a folder of others has no such report, or one of its own
    with suppress(UserError):
        rows += _report_rows(folder / "report.json")
    return rows


def _stopped_rows(folder: Path) -> Rows:
    stopped = read_stopped(folder)
    return [
        ("first stage", f"{folder}, in training"),
        ("kind", stopped.config.kind),
        ("done", f"{stopped.step:,} of {stopped.config.steps:,} steps"),
        ("continue with", f"dit train-vae --resume {shell_quote(folder)}"),
    ]


def _report_rows(file: Path) -> Rows:
    report = read_json(file, FirstStageReport, "the report of dit train-vae", "")
    rows = [("held out", f"{report['held_out']:,} images")]
    for name, value in report["scores"].items():
        rows.append((name, value if isinstance(value, str) else f"{value:.4g}"))
    psnr = report["scores"].get("PSNR")
    if isinstance(psnr, float):
        rows.append(("quality", f"PSNR {describe_psnr(psnr)}"))
    return rows
