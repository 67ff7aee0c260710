"""Random tensors and a small nonlinear network for tests of the mathematics of diffusion."""

from itertools import count

import torch

from dit.diffusion.process import DDPM, Denoiser, Flow

PROCESSES = {
    "linear": DDPM("linear"),
    "cosine": DDPM("cosine"),
    "flow": Flow(),
    "shifted": Flow(shift=3.0),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def noises(shape, seed=1):
    """A function that returns another draw with each call."""
    seeds = count(seed)
    return lambda: normal(*shape, seed=next(seeds))


def time(value):
    return torch.tensor(value, dtype=torch.float64)


class Toy(torch.nn.Module):
    """Nonlinear in image, time and label; records the labels of its calls."""

    def __init__(self, learn_sigma=False):
        super().__init__()
        self.labels, self.learn_sigma = [], learn_sigma

    def forward(self, x, t, y):
        self.labels.append(y.tolist())
        phase = (t / 500 + y).view(-1, 1, 1, 1)
        out = torch.sin(2 * x + phase) + 0.3 * x.flip(1)
        return torch.cat([out, torch.cos(3 * x - phase)], dim=1) if self.learn_sigma else out


def toy(process, objective=None, learn_sigma=False):
    return Denoiser(Toy(learn_sigma), process, objective or process.slope, learn_sigma)
