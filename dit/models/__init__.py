"""Networks: `forward(x_t, t, y) -> output`; they know nothing of diffusion, files or ranks."""
