"""Runs on disk: the card, checkpoints, weights files, metrics, averages."""

from dit.runs.card import ModelCard, NetworkSpec

__all__ = ["ModelCard", "NetworkSpec"]
