"""Diffusion Transformers: train, sample and evaluate image models on VAE latents."""

__version__ = "0.1.0"
