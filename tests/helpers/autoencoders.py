"""Tiny autoencoders with random weights, as folders in diffusers' layout."""

from dit.commands.train_vae.networks import create_network
from dit.config import VaeConfig


def save_tiny(folder, kind="kl", **config):
    """Write one with 2 latent channels and a factor of 2."""
    cfg = VaeConfig(kind=kind, out=folder, channels=(8, 8), latent_channels=2, image_size=16)
    network = create_network(cfg.resolved())
    network.register_to_config(**config)
    network.save_pretrained(folder)
    return folder
