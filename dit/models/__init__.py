"""Networks: forward(x_t, t, y) -> output. They import nothing of diffusion, files or ranks."""
