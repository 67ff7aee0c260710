"""The command `dit train`, or train.py: train, or continue, a run."""

from pathlib import Path

from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.runs.card import ModelCard
from dit.training.run_training import run_training


def train(config: TrainConfig, ranks: Ranks, parent_card: ModelCard | None = None) -> Path | None:
    """Train, or continue, a run; return its directory, or None after a dry run.

    Args:
        parent_card: of a run whose latent statistics and classes this one shares.
    """
    trained = run_training(config, ranks, parent_card)
    return trained.run if trained else None
