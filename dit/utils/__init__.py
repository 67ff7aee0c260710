"""Small helpers that know nothing of diffusion: files, hub downloads, pictures, image sizes."""
