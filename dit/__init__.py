"""Diffusion Transformers: train, sample and evaluate image models on VAE latents."""

from dit.errors import refuse_other_package

refuse_other_package()

__version__ = "0.2.0"
