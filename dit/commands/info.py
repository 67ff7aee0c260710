"""What a run, a checkpoint, a file of weights or a first stage is, as a table of plain text."""

import json
import textwrap
from pathlib import Path
from typing import Any

import torch

from dit.build import build_network
from dit.config import InfoConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import CONFIG, KLCodec, VQCodec, load_autoencoder
from dit.errors import UserError
from dit.models.registry import is_classifier, parameters, structure
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.checkpoints import (
    BEST,
    checkpoint_step,
    checkpoints,
    find_best,
    incomplete_checkpoints,
    verify_checkpoint,
)
from dit.runs.formats.release import read_release
from dit.runs.metrics import read_metrics
from dit.runs.posthoc_ema import snapshot_steps
from dit.runs.weights import WEIGHTS, Weights, read_weights
from dit.utils.image_size import Size, describe_size, sides

Rows = list[tuple[str, str]]
WIDTH = 100  # columns of the table


def info(path: Path) -> str:
    """The table for a run directory, a checkpoint directory, a .safetensors file, a .pt file of the DiT release, or the
    folder of a first stage.

    Raises:
        UserError: none of these, or weights that can not be read.
    """
    if path.is_file():
        return table(_weights_rows(path) if path.suffix == ".safetensors" else _release_rows(path))
    if (path / "meta.json").exists():
        return table(_checkpoint_rows(path))
    if "_class_name" in _read_json(path / CONFIG):
        return table(_stage_rows(path))
    if (path / "config.json").exists() or checkpoints(path):
        return table(_run_rows(path))
    what = (
        f"{path} has neither config.json nor meta.json" if path.is_dir() else f"nothing at {path}"
    )
    raise UserError(
        what,
        "a run, a checkpoint, a first stage, or a file of weights (.safetensors, .pt)",
        "check the path",
    )


def show(config: InfoConfig, ranks: Ranks) -> None:
    """Print the table of `dit info`."""
    if ranks.main:
        print(info(config.path))


def table(rows: Rows) -> str:
    """Names on the left, values, wrapped, on the right."""
    left = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, value in rows:
        wrapped = textwrap.wrap(
            value, WIDTH - left, break_long_words=False, break_on_hyphens=False
        ) or [""]
        lines += [f"{name:<{left}}{wrapped[0]}", *(" " * left + line for line in wrapped[1:])]
    return "\n".join(line.rstrip() for line in lines)


def _run_rows(run: Path) -> Rows:
    found = checkpoints(run)
    if (run / "config.json").exists():
        card = ModelCard.read(run)
    else:
        card = read_weights(next(found[-1].glob(WEIGHTS))).card
    rows = [("run", str(run)), *card_rows(card), *_progress_rows(run, card), *_best_rows(run)]
    rows += _average_rows(run, card)
    rows += [(f"checkpoint {checkpoint_step(c)}", _health(c)) for c in found]
    return [
        *rows,
        *((folder.name, "no meta.json: not counted") for folder in incomplete_checkpoints(run)),
    ]


def _checkpoint_rows(checkpoint: Path) -> Rows:
    rows = [("checkpoint", str(checkpoint)), ("files", _health(checkpoint))]
    try:
        return [
            *rows,
            *_header_rows(read_weights(next(checkpoint.glob(WEIGHTS), checkpoint / WEIGHTS))),
        ]
    except UserError as error:
        return [*rows, ("weights", error.given)]


def _weights_rows(file: Path) -> Rows:
    return [("weights", f"{file}, {_size(file.stat().st_size)}"), *_header_rows(read_weights(file))]


def _header_rows(weights: Weights) -> Rows:
    return [("step", f"{weights.step:,}"), *card_rows(weights.card)]


def _release_rows(file: Path) -> Rows:
    spec, state_dict = read_release(file)
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state_dict.values()})
    return [
        ("weights", f"{file}, {_size(file.stat().st_size)}, of the original DiT release"),
        *_network_rows(spec),
        ("stored as", ", ".join(kinds)),
    ]


def _stage_rows(folder: Path) -> Rows:
    """What `dit train-vae` leaves, or an autoencoder in diffusers' layout from elsewhere."""
    autoencoder = load_autoencoder(str(folder.absolute()))
    codec = autoencoder.codec
    assert isinstance(codec, KLCodec | VQCodec)
    entries = f", {len(codec.codebook):,} entries" if isinstance(codec, VQCodec) else ""
    mean, deviation = (
        _numbers(v.flatten().tolist()) for v in (autoencoder.shift, 1 / autoencoder.scale)
    )
    report = _read_json(folder / "report.json")
    scores = report.get("scores", {})
    return [
        ("first stage", str(folder)),
        ("kind", f"{'VQ' if entries else 'KL'} ({type(codec.network).__name__}{entries})"),
        ("parameters", f"{parameters(codec.network):,}"),
        ("factor", f"{autoencoder.factor} pixels a latent, along a side"),
        ("latent channels", str(autoencoder.channels)),
        ("latents scaled by", f"mean {mean}, deviation {deviation}"),
        ("weights", f"SHA-256 {autoencoder.checksum}"),
        *([("held out", f"{report['held_out']:,} images")] if "held_out" in report else []),
        *(
            (name, value if isinstance(value, str) else f"{value:.4g}")
            for name, value in scores.items()
        ),
    ]


def _read_json(file: Path) -> dict[str, Any]:
    """What is in a file; nothing where it is missing or damaged."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def card_rows(card: ModelCard) -> Rows:
    """What a network is and how it was trained."""
    config, spec = card.config, card.network
    objective = f"{config.objective} prediction" + (
        ", learned variance" if config.learn_sigma else ""
    )
    if is_classifier(spec.model):
        objective = "class of noised latents"
    times = (
        f", {config.time_sampling} times shifted by {config.time_shift:g}"
        if config.process == "flow"
        else ""
    )
    process = "flow matching" if config.process == "flow" else f"DDPM, {config.process} betas"
    text = spec.text_width is not None
    count = spec.num_classes if text else len(card.classes)  # a card has not all of many captions
    norm = (
        "the autoencoder's constants"
        if card.latent_mean is None
        else f"mean {_numbers(card.latent_mean)}, "
    )
    norm += (
        ""
        if card.latent_std is None
        else f"deviation {_numbers(card.latent_std)}, measured on the data"
    )
    return [
        *_network_rows(spec),
        ("images", describe_size(config.image_size)),
        ("autoencoder", config.vae),
        ("latents scaled by", norm),
        ("data", config.data),
        *([("text encoder", config.text_encoder or "digits")] if card.text_encoder_sha256 else []),
        *(
            []
            if card.unconditional
            else [("captions" if text else "class names", _names(card.classes, count))]
        ),
        ("process", process + times),
        ("objective", objective),
        *(
            []
            if card.unconditional
            else [(f"{'caption' if text else 'label'} dropout", f"{config.label_dropout:g}")]
        ),
        ("optimizer", f"AdamW, lr {config.lr:g}, batch {config.global_batch_size}"),
        ("EMA decay", f"{config.ema:g}") if card.ema_length is None else ("EMA", str(card.average)),
        ("precision", config.precision),
        ("seed", str(config.seed)),
    ]


def _network_rows(spec: NetworkSpec) -> Rows:
    with torch.device("meta"):
        network = build_network(spec)
    return [
        ("model", spec.model),
        ("network", structure(network)),
        ("parameters", f"{parameters(network):,}"),
        (
            "latents",
            " x ".join(map(str, (spec.in_channels, *sides(spec.input_size))))
            + _order(spec.input_size),
        ),
        *(
            []
            if spec.text_width
            else [("classes", str(spec.num_classes or "none (unconditional)"))]
        ),
        ("learned variance", "yes" if spec.learn_sigma else "no"),
    ]


def _progress_rows(run: Path, card: ModelCard) -> Rows:
    lines = read_metrics(run / "metrics.jsonl")
    goal = (
        f"{card.config.epochs:g} epochs" if card.config.epochs else f"{card.config.steps:,} steps"
    )
    if not lines:
        return [("trained", f"no step logged, of {goal}")]
    losses = [line["loss"] for line in lines if "loss" in line]
    return [
        ("trained", f"{lines[-1]['step']:,} steps logged, of {goal}"),
        *([("last loss", f"{losses[-1]:.4f}")] if losses else []),
    ]


def _best_rows(run: Path) -> Rows:
    best = find_best(run)
    if best is None:
        return []
    checkpoint, distance = best
    linked = (run / BEST).resolve() == checkpoint.resolve()
    where = BEST if linked else str(checkpoint.relative_to(run))
    step = checkpoint_step(checkpoint)
    return [("best score", f"{distance.name} {distance.value:.4g} at step {step:,} ({where})")]


def _average_rows(run: Path, card: ModelCard) -> Rows:
    """What --ema-lengths tracks, and how much of it is stored."""
    lengths = " ".join(f"{length:g}" for length in card.config.ema_lengths)
    if not lengths:
        return []
    steps = snapshot_steps(run)
    stored = (
        f"{len(steps)} snapshots, the last at step {max(steps):,}" if steps else "no snapshot yet"
    )
    return [("averages", f"lengths {lengths}; {stored}")]


def _health(checkpoint: Path) -> str:
    """Size of a checkpoint's files, and whether they are as they were written."""
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    try:
        files = verify_checkpoint(checkpoint)["files"]
    except UserError as error:
        return f"{_size(size)}, DAMAGED: {error.given}; expected {error.expected}"
    return f"{_size(size)}, {len(files)} file{'s' * (len(files) != 1)}, checksums verified"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _order(latent: Size) -> str:
    height, width = sides(latent)
    return " (channels, height, width)" if height != width else ""


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _names(classes: list[str], count: int, most: int = 20) -> str:
    """The first of them, and how many more there are, of `count`."""
    shown = ", ".join(classes[:most])
    return shown if count <= most else f"{shown}, … ({count - min(most, len(classes)):,} more)"
