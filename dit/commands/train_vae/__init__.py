"""The command `dit train-vae`: training of first stages, the autoencoders of latent diffusion."""
