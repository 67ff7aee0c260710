"""Check flags, and load what a run reads: autoencoder, data, text encoder; with its card."""

from dataclasses import dataclass, replace
from pathlib import Path

from dit.build import build_text_encoder, with_data_statistics
from dit.config import TrainConfig
from dit.distributed.float8 import require_fp8
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.encoders.text import TextEncoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.latents.store import Latents
from dit.models.registry import check_name
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import read_card
from dit.training.build_card import build_card
from dit.training.monitoring.trackers import require_wandb
from dit.training.resume import require_autoencoder
from dit.training.run_directory import find_run


@dataclass(frozen=True)
class RunInputs:
    """Data and frozen networks of a run, and the card of the network to train."""

    card: ModelCard
    source: Latents
    autoencoder: Autoencoder
    encoder: TextEncoder | None = None  # of captions


def check(config: TrainConfig, ranks: Ranks) -> Path | None:
    """Refuse mistakes before anything is loaded; return the checkpoint to continue from, if any."""
    check_name(config.model, config.conditioning)
    divisor = ranks.world * config.grad_accum
    if config.global_batch_size % divisor:
        count = f"{ranks.world} rank{'s' if ranks.world > 1 else ''}"
        raise UserError(
            f"--global-batch-size {config.global_batch_size} on {count} with --grad-accum "
            f"{config.grad_accum}",
            f"a multiple of {divisor}",
            "change one of them",
        )
    _, last = find_run(config, ranks)
    require_wandb(config.wandb)
    require_fp8(config.precision, ranks.device)
    return last


def load_inputs(
    config: TrainConfig, ranks: Ranks, last: Path | None, parent_card: ModelCard | None
) -> RunInputs:
    """Load what a run reads.

    Args:
        last: the checkpoint to continue from, whose run's latent statistics and classes hold.
        parent_card: of a run that this one shares them with.
    """
    autoencoder = load_autoencoder(config.vae, ranks.device)
    source = build_source(config, autoencoder, ranks)
    encoder = build_text_encoder(config, ranks.device)

    before = read_card(last.parents[1]) if last else None
    card = build_card(config, source, encoder, before or parent_card)
    card = replace(card, vae_sha256=autoencoder.checksum)
    if parent_card:
        require_autoencoder(card, parent_card, "the run to be guided", "put that one back")
    return RunInputs(card, source, with_data_statistics(autoencoder, card), encoder)
