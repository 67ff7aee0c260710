"""The checks and tables of --dry-run: what a configuration would train, without training it."""

from dataclasses import replace

from dit.build import build_text_encoder
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.runs.card import ModelCard
from dit.runs.checkpoint_files import read_card
from dit.training.build_card import build_card
from dit.training.cost.assumed import (
    AssumedImageNet,
    load_or_assume_autoencoder,
    load_or_assume_source,
)
from dit.training.cost.ddp_or_fsdp import choose, frozen_bytes
from dit.training.cost.describe import describe
from dit.training.cost.planning import PlannedStep, scaling_table
from dit.training.finetune import find_origin
from dit.training.lr_schedule import total_steps
from dit.training.resume import require_autoencoder
from dit.training.run_directory import find_run, open_run


def dry_run(config: TrainConfig, ranks: Ranks, parent_card: ModelCard | None = None) -> str:
    """Return the table of a training, and with --gpus the table by number of GPUs.

    All that training checks before its first step is checked here too. Nothing is written. Shapes
    of data and autoencoder that are not on this disk are assumed where they are known.

    Args:
        parent_card: of a run whose latent statistics are shared, as a classifier shares them.
    """
    _, last = find_run(config, ranks)
    before = read_card(last.parents[1]) if last else parent_card
    autoencoder = load_or_assume_autoencoder(config, before, ranks.device)
    source = load_or_assume_source(config, autoencoder, last, parent_card, ranks)
    encoder = build_text_encoder(config, ranks.device)

    card = build_card(config, source, encoder, before)
    card = replace(card, vae_sha256=autoencoder.checksum)
    if parent_card:
        require_autoencoder(card, parent_card, "the run to be guided", "put that one back")
    if config.eval_every and not isinstance(source, AssumedImageNet):
        # imported here: without --eval-every, training needs no code of evaluation
        from dit.training.monitoring.evaluation import choose_eval_target

        choose_eval_target(config, ranks)
    open_run(card, len(source.labels), ranks)
    if config.init and not last:
        find_origin(card, config.init)

    choice = choose(card, autoencoder, encoder, ranks)
    table = ranks.on_main(lambda: describe(card, source, autoencoder, encoder, ranks, choice))
    if not config.gpus:
        return table

    frozen = frozen_bytes(autoencoder, encoder)
    step = PlannedStep(card, encoder.length if encoder else 0, frozen)
    images = total_steps(config, len(source.labels)) * config.global_batch_size
    return f"{table}\n{ranks.on_main(lambda: scaling_table(step, images))}"
