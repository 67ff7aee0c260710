"""Checks before anything is loaded, so that a mistake shows at once."""

from pathlib import Path

from dit.config import TrainConfig
from dit.distributed.float8 import require_fp8
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.models.registry import check_name
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
    _require_whole_share(config, config.global_batch_size // divisor)
    _, last = find_run(config, ranks)
    require_wandb(config.wandb)
    require_fp8(config.precision, ranks.device)
    return last


def _require_whole_share(config: TrainConfig, micro_batch: int) -> None:
    """Refuse a share of a micro-batch that is no whole number of images."""
    if config.objective != "meanflow":
        return
    images = config.meanflow_instant * micro_batch
    if abs(images - round(images)) > 1e-6:
        raise UserError(
            f"--meanflow-instant {config.meanflow_instant:g} of {micro_batch} images a rank at "
            "once",
            "a whole number of images",
            "pass another --global-batch-size, --grad-accum or --meanflow-instant",
        )
