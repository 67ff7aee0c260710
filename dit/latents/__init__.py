"""Latents of images: computed when needed, or stored by `dit encode`."""
