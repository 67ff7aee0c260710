"""Frozen networks around the DiT: autoencoders (pixels and latents) and text encoders."""
