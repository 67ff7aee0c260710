"""Training of first stages: the autoencoders between whose latents and pixels diffusion goes to and fro."""
