"""The training loop and what it needs: EMA, checkpoints, ranks, logs."""
