"""Frozen networks around the DiT: autoencoders (pixels <-> latents) and text encoders."""
