"""Pixels to latents and back, and latents at rest."""
