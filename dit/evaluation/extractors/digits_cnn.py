"""The small feature network for digits, and the script that trained the bundled weights.

    python -m dit.evaluation.extractors.digits_cnn --out dit/assets/digits-cnn.safetensors

trains it on four fifths of scikit-learn's digits in under a minute and prints its accuracy on the
last fifth. Scores on its features are comparable among themselves only, and never called FID.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 64  # features
SIZE = 32  # pixels
HELD_OUT = 0.2
EPOCHS = 20
BATCH_SIZE = 64


class DigitsCNN(nn.Module):
    """Three convolutions and a linear layer for the features, another for the logits.

    `scale` brings the features' mean variance over the training digits to 1.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.SiLU(),  # [B, 32, 16, 16]
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.SiLU(),  # [B, 64, 8, 8]
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.SiLU(),  # [B, 64, 4, 4]
        )
        self.features = nn.Linear(64 * 4 * 4, WIDTH)
        self.logits = nn.Linear(WIDTH, 10)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] uint8 of any size -> features [B, 64] and logits [B, 10]."""
        return self.from_gray(to_gray(images))

    def from_gray(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, 32, 32] in [-1, 1] -> features [B, 64] and logits [B, 10]."""
        hidden = F.silu(self.features(self.convolutions(gray).flatten(1)))
        return hidden * self.scale, self.logits(hidden)


def to_gray(images: Tensor) -> Tensor:
    """[B, C, H, W] uint8 -> [B, 1, 32, 32] in [-1, 1]: averaged by area, or bilinear from less."""
    gray = images.float().mean(dim=1, keepdim=True) / 127.5 - 1
    if min(gray.shape[-2:]) > SIZE:
        gray = F.interpolate(gray, (SIZE, SIZE), mode="area")
    elif tuple(gray.shape[-2:]) != (SIZE, SIZE):
        gray = F.interpolate(gray, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return gray


def held_out(labels: np.ndarray) -> np.ndarray:
    """Return a mask [N] of a fifth of every class, always the same, which training excludes."""
    mask = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(0)
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        mask[indices[: math.ceil(HELD_OUT * len(indices))]] = True
    return mask


@torch.no_grad()
def accuracy(network: DigitsCNN, images: Tensor, labels: Tensor) -> float:
    """Return the share of [N, 3, H, W] uint8 images recognised."""
    _, logits = network(images)
    return (logits.argmax(1) == labels).float().mean().item()


def train(images: Tensor, labels: Tensor) -> DigitsCNN:
    """Train on [N, 3, H, W] uint8 digits, with random shifts, noise and contrast."""
    torch.manual_seed(0)
    network = DigitsCNN()
    fit(network, network.from_gray, to_gray(images), labels, _augment, EPOCHS)
    return network


def fit(
    network: nn.Module,
    classify: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    labels: Tensor,
    augment: Callable[[Tensor], Tensor],
    epochs: int,
) -> None:
    """Train a network on inputs x [N, ...] and classes [N], and set its `scale`.

    Args:
        classify: returns its features and logits.
        augment: changes a batch of x at random.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    batches = len(x) // BATCH_SIZE
    steps = epochs * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)

    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE)[:batches]:
            _, logits = classify(augment(x[batch]))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    network.eval()
    with torch.no_grad():
        features, _ = classify(x)
        scale = features.var(dim=0).mean().rsqrt()
        network.scale.copy_(scale)  # type: ignore[operator, union-attr]


def _augment(gray: Tensor) -> Tensor:
    """Shift each image by up to 3 pixels, scale its contrast by 0.7 to 1.1 and add noise."""
    count = len(gray)
    # Grids reach from -1 to 1, over SIZE pixels.
    theta = torch.eye(2, 3).repeat(count, 1, 1)
    shift = torch.rand(count, 2) * 2 - 1
    theta[:, :, 2] = shift * 3 * 2 / SIZE
    grid = F.affine_grid(theta, list(gray.shape), align_corners=False)
    # Sampling pads with 0, which is black once 1 is added.
    moved = F.grid_sample(gray + 1, grid, align_corners=False) - 1
    contrast = 0.7 + 0.4 * torch.rand(count, 1, 1, 1)
    noise = 0.12 * torch.rand(count, 1, 1, 1) * torch.randn_like(gray)
    return ((moved + 1) * contrast - 1 + noise).clamp(-1, 1)


def main() -> None:
    """Train on four fifths, report on the last, save."""
    from safetensors.torch import save_file

    from dit.data.images import Digits

    parser = argparse.ArgumentParser(description="Train the feature network for digits.")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.safetensors)")
    out = parser.parse_args().out

    digits = Digits(SIZE)
    labels = torch.from_numpy(digits.labels)
    unseen = torch.from_numpy(held_out(digits.labels))
    network = train(digits.images[~unseen], labels[~unseen])
    share = accuracy(network, digits.images[unseen], labels[unseen])
    print(f"accuracy on {int(unseen.sum())} held-out digits: {share:.2%}")
    save_file(network.state_dict(), out)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
