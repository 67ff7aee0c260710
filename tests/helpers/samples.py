"""Folders of samples, and their pixels."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dit.config import SamplerConfig
from dit.distributed.ranks import Ranks
from dit.sampling.load import LoadedRun
from dit.sampling.sample_folder import sample_folder

QUICK = SamplerConfig(
    sampler="heun", precision="fp32", steps=3, cfg_scale=2.0, seed=5, batch_size=4
)
CLASSES = [3, 1, 4]


def fill(
    run: LoadedRun, out: Path, count: int, format: str = "png", config: SamplerConfig = QUICK
) -> Path:
    """Sample a folder on one rank."""
    return sample_folder(run, config, CLASSES, count, out, format, Ranks())


def pixels(folder: Path) -> torch.Tensor:
    """The images of a folder in order, [N, S, S, 3] as integers that can be subtracted."""
    if (folder / "samples.npz").exists():
        return torch.from_numpy(np.load(folder / "samples.npz")["arr_0"]).int()
    files = sorted(folder.glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).int() for file in files])


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference of two tensors of one shape."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()
