"""What must be the same when a run is resumed, and what may change."""

import sys
from pathlib import Path

from dit.config import TrainConfig, to_json
from dit.config.flag_names import as_typed
from dit.errors import UserError
from dit.runs.card import CONFIG, ModelCard
from dit.runs.checkpoint_files import (
    checkpoint_card,
    is_run,
    notes_on_incomplete,
    read_card,
    verify_checkpoint,
)
from dit.runs.weights import WEIGHTS
from dit.utils.files import describe_checksum, shell_quote
from dit.utils.image_size import sides

MAY_CHANGE = {
    *(
        "preset",
        "out",
        "resume",
        "data",
        "image_column",
        "label_column",
        "vae",
        "text_encoder",
        "skip_damaged",
    ),
    *("steps", "epochs", "dry_run", "timeout", "wandb", "log_every", "sample_every"),
    *("sample_first", "ckpt_every", "keep", "keep_every", "ema_every"),
    *("eval_every", "eval_reference", "eval_weights"),
    *("compile", "grad_accum", "parallel", "recompute"),
}
"""Settings that may differ when a run continues.

`data`, `vae`, `text_encoder` and the encoder of `align` may have moved: their classes, shapes and
checksums may not change.
"""
MAY_CHANGE_IF_RUN_IS_NAMED = {
    *("lr", "weight_decay", "beta2", "warmup", "cooldown", "clip", "precision", "label_dropout"),
    *("spike", "on_divergence", "max_skips", "eval_samples", "eval_extractor"),
}
"""Settings that may differ too when --resume names the run: the user means it."""


def check_checkpoint(run: Path, last: Path) -> None:
    """Verify weights and settings; warn of newer, incomplete checkpoints and a lost config.json."""
    for note in notes_on_incomplete(run, "continuing from"):
        print(f"warning: {note}", file=sys.stderr)
    if not is_run(run):
        print(
            f"warning: {run / CONFIG} is missing or damaged; restored from {last.name}",
            file=sys.stderr,
        )
    verify_checkpoint(last, WEIGHTS)
    require_settings(run, last)


def require_settings(run: Path, checkpoint: Path) -> list[str]:
    """Return in words how config.json differs from a checkpoint, as after --resume with new flags.

    Settings that never change are refused.
    """
    different = changes(checkpoint_card(checkpoint), read_card(run))
    if not different.keys() <= MAY_CHANGE | MAY_CHANGE_IF_RUN_IS_NAMED:
        raise UserError(
            f"{run / CONFIG} is not that of {checkpoint.name} ({'; '.join(different.values())})",
            "the settings that it was trained with",
            "put them back, or remove the file, which "
            f"`train.py --resume {shell_quote(run)}` restores",
        )
    return [*different.values()]


def changes(then: ModelCard, now: ModelCard) -> dict[str, str]:
    """Return settings that changed in the course of a run, by name, in words."""
    old, new = _all_settings(then), _all_settings(now)
    return {
        key: f"{_typed(key, old)} before, {_typed(key, new)} now"
        for key in new
        if key not in ("out", "resume", "dry_run") and old[key] != new[key]
    }


def require_same_settings(run: Path, card: ModelCard) -> None:
    before = read_card(run)
    require_autoencoder(card, before, run, "put that one back, or pass --vae with its new path")

    # `auto` is used in scripts, where a changed flag is probably an error.
    allowed = set(MAY_CHANGE)
    if card.config.resume not in (None, "auto"):
        allowed |= MAY_CHANGE_IF_RUN_IS_NAMED
    old, new = _all_settings(before), _all_settings(card)
    fixed = [key for key in new if key not in allowed]
    different = [key for key in fixed if old[key] != new[key]]
    if different:
        changed = [f"{_typed(key, old)} there, {_typed(key, new)} now" for key in different]
        words = "; ".join(changed)
        raise UserError(
            f"run directory {run} has another configuration ({words})",
            "the same settings",
            "use another --out, or the settings that it has",
        )


def require_autoencoder(card: ModelCard, before: ModelCard, run: object, do: str) -> None:
    """Refuse another autoencoder than that of `before`, the card of `run`."""
    if before.vae_sha256 not in (None, card.vae_sha256):
        raise UserError(
            f"--vae {card.config.vae} with {describe_checksum(card.vae_sha256)}",
            f"{describe_checksum(before.vae_sha256)}, the one that {run} was trained with",
            do,
        )


def _typed(key: str, settings: dict[str, object]) -> str:
    return as_typed(TrainConfig, key, settings[key])


def _all_settings(card: ModelCard) -> dict[str, object]:
    return {
        **to_json(card.config),
        "image_size": list(sides(card.config.image_size)),
        **card.network.to_json(),
        "classes": card.classes,
        "latent_mean": card.latent_mean,
        "latent_std": card.latent_std,
        "text_encoder_sha256": card.text_encoder_sha256,
        "align_sha256": card.align_sha256,
        # an encoder may have moved: its checksum may not change
        "align": "an encoder" if card.align_sha256 else card.config.align,
    }
