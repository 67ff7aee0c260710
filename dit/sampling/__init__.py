"""Sampling: load a run, build its pipeline, generate images, write folders of them."""
