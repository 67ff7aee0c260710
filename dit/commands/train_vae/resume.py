"""Whether a training of a first stage starts, continues or is complete, by its folder."""

import dataclasses
import sys
from collections.abc import Set
from pathlib import Path

from dit.commands.train_vae.checkpoint import CHECKPOINT, Progress, has_checkpoint, read_stopped
from dit.commands.train_vae.report import CURVE, LOG, REPORT, SAMPLES, read_report
from dit.config import VaeConfig, as_typed
from dit.data.counts import count_of
from dit.encoders.autoencoder import CONFIG
from dit.errors import UserError
from dit.utils.files import LOCK, shell_quote
from dit.utils.outputs import require_outside, require_own_folder

MAY_CHANGE = {
    *("out", "resume", "data", "skip_damaged", "lpips"),
    *("sample_every", "ckpt_every", "extractor", "weights"),
}
"""Settings that may differ when a training continues. Files may have moved."""
MAY_CHANGE_IF_NAMED = {"steps", "lr", "precision"}
"""Settings that may differ too when --resume names the folder: the user means it."""


def find_settings(folder: Path) -> VaeConfig | None:
    """Return the settings of the training in a folder, stopped or complete, if there is one."""
    if has_checkpoint(folder):
        return read_stopped(folder).config
    if (folder / CONFIG).is_file() and (folder / REPORT).is_file():
        return read_report(folder)["config"]
    return None


def settings_of(folder: Path) -> VaeConfig:
    """Return the settings of the training in a folder; refuse a folder without one."""
    if found := find_settings(folder):
        return found
    raise UserError(
        f"--resume {folder}: no checkpoint there",
        f"a folder of dit train-vae with {CHECKPOINT}",
        "check the path, or start a training with --out FOLDER --resume auto",
    )


def find_stopped(cfg: VaeConfig) -> Progress | None:
    """Return the training in --out to continue, if any; refuse a folder of something else."""
    if cfg.resume not in (None, "auto") and cfg.out != Path(str(cfg.resume)):
        raise UserError(
            f"--resume {cfg.resume} with --out {cfg.out}",
            "one folder",
            "drop --out: a training continues where it is",
        )
    require_outside(cfg.out, cfg.data)
    if not has_checkpoint(cfg.out):
        # a training stopped before its first checkpoint leaves these beside its lock
        leftovers = (LOG, CURVE, SAMPLES) if (cfg.out / LOCK).is_file() else ()
        require_own_folder(cfg.out, LOCK, "a stopped dit train-vae", False, leftovers)
        return None

    stopped = read_stopped(cfg.out)
    if cfg.resume is None:
        raise UserError(
            f"--out {cfg.out} holds a training that was stopped after step {stopped.step} of "
            f"{stopped.config.steps}",
            "a folder that is new or empty",
            f"pass --resume {shell_quote(cfg.out)} to continue it, or another --out",
        )
    named = cfg.resume != "auto"
    require_same_settings(stopped.config, cfg, MAY_CHANGE_IF_NAMED if named else frozenset())
    if stopped.step > cfg.steps:
        raise UserError(
            f"--steps {cfg.steps} for {cfg.out}, which has done {stopped.step}",
            "more steps than that",
            "pass more --steps",
        )
    return stopped


def is_finished(cfg: VaeConfig) -> bool:
    """Whether --resume names a training that is complete, with these settings."""
    if cfg.resume is None or has_checkpoint(cfg.out):
        return False
    if not all((cfg.out / name).is_file() for name in (CONFIG, REPORT)):
        return False
    require_same_settings(read_report(cfg.out)["config"], cfg)
    return True


def require_same_settings(before: VaeConfig, now: VaeConfig, also: Set[str] = frozenset()) -> None:
    """Refuse settings other than those before, except where they may change; print what changed.

    Args:
        also: settings that may change too.
    """
    changed = {}
    for name in (field.name for field in dataclasses.fields(now)):
        old, new = getattr(before, name), getattr(now, name)
        if name not in MAY_CHANGE and old != new:
            words = f"{as_typed(VaeConfig, name, old)} before, {as_typed(VaeConfig, name, new)} now"
            changed[name] = words
    refused = [words for name, words in changed.items() if name not in also]
    if refused:
        raise UserError(
            f"{now.out} was trained with other settings ({'; '.join(refused)})",
            "the same settings",
            "use another --out, or the same flags",
        )
    if changed:
        print(f"changed  {'; '.join(changed.values())}", flush=True)


def require_same_images(stopped: Progress, count: int, stamp: str, cfg: VaeConfig) -> None:
    """Refuse to continue on another number of images; warn if they are other files."""
    if stopped.images != count:
        raise UserError(
            f"{count_of(count, 'image')} in --data {cfg.data} to train on",
            f"{stopped.images:,}, as when the training in {cfg.out} started",
            "put the images back, or start again with another --out",
        )
    # no refusal: files that were copied have other times
    if stopped.stamp and stopped.stamp != stamp:
        print(
            f"warning: names, sizes or times of the images in --data {cfg.data} are not those "
            f"when the training in {cfg.out} last ran; it continues with the images as they are",
            file=sys.stderr,
        )
