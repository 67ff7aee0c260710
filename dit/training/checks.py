"""Checks before anything is loaded, so that a mistake shows at once."""

from fractions import Fraction
from functools import partial
from pathlib import Path

from dit.config import TrainConfig
from dit.distributed.float8 import require_fp8
from dit.distributed.ranks import Ranks
from dit.encoders.text import locate_text_encoder
from dit.encoders.vision import locate_vision_encoder
from dit.errors import UserError
from dit.models.layers import refuse_idle_switches
from dit.models.registry import check_name
from dit.training.build_card import card_of_init
from dit.training.monitoring.trackers import require_wandb
from dit.training.run_directory import find_run


def check_and_find_checkpoint(config: TrainConfig, ranks: Ranks) -> Path | None:
    """Refuse mistakes before anything is loaded; return the checkpoint to continue from, if any."""
    check_name(config.model, config.conditioning, config.block)
    divisor = ranks.world * config.grad_accum
    if config.global_batch_size % divisor:
        count = f"{ranks.world} rank{'s' if ranks.world > 1 else ''}"
        raise UserError(
            f"--batch-size {config.global_batch_size} on {count} with --grad-accum "
            f"{config.grad_accum}",
            f"a multiple of {divisor}",
            f"pass --batch-size {divisor * max(1, config.global_batch_size // divisor)}",
        )
    _require_whole_share(config, divisor)
    _, last = find_run(config, ranks)
    # a run of an earlier version may have such settings
    if last is None:
        refuse_idle_switches(config.block)
        _require_lengths(config)
    require_wandb(config.wandb)
    require_fp8(config.precision, ranks.device)
    ranks.on_main(partial(_require_networks, config, last))
    return last


def _require_networks(config: TrainConfig, last: Path | None) -> None:
    """Refuse names of networks that are not there; those are loaded after the data."""
    if last is None:
        card_of_init(config)
    if config.align not in (None, "self"):
        locate_vision_encoder(config.align)
    if config.text_encoder is not None:
        locate_text_encoder(config.text_encoder)


def _require_lengths(config: TrainConfig) -> None:
    """Refuse average velocities over steps none of which has a length."""
    if config.objective == "meanflow" and config.meanflow_instant == 1:
        raise UserError(
            "--meanflow-instant 1",
            "at least 0 and below 1",
            "with 1 no step has a length: pass --objective v to train flow matching",
        )


def _require_whole_share(config: TrainConfig, divisor: int) -> None:
    """Refuse a share of a micro-batch that is no whole number of images.

    Args:
        divisor: micro-batches in a batch, over all ranks.
    """
    if config.objective != "meanflow":
        return
    micro_batch = config.global_batch_size // divisor
    images = config.meanflow_instant * micro_batch
    if abs(images - round(images)) > 1e-6:
        unit = Fraction(config.meanflow_instant).limit_denominator(10**6).denominator
        fitting = unit * max(1, round(micro_batch / unit))
        raise UserError(
            f"--meanflow-instant {config.meanflow_instant:g} of {micro_batch} images a rank at "
            "once",
            "a whole number of images",
            f"pass --batch-size {divisor * fitting}, or another --meanflow-instant",
        )
