"""The mathematics of diffusion: no network, no file, no rank."""
