"""Helpers independent of diffusion: files, hub downloads, figures, image sizes."""
