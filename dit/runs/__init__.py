"""Runs on disk: the card, checkpoints, weights files, metrics, averages."""
