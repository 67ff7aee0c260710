"""A grid of sampling settings on one run."""
