"""A small classifier of a set of images, whose features compare samples of that set.

    python -m benchmarks.small_features data/emoji-64   # writes data/emoji-64.safetensors

It learns four fifths of each class and prints its accuracy on the last fifth. Scores on its
features are comparable among themselves only, and never called FID. `evaluate.py` takes it as
`--extractor benchmarks.small_features:SmallFeatures --weights data/emoji-64.safetensors`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from dit.data.images import ImageFolder
from dit.evaluation.extractors.digits_cnn import fit, held_out

SIDE = 32  # pixels
WIDTHS = (32, 64, 128)
FEATURES = 64
EPOCHS = 30


class SmallFeatures(nn.Module):
    """[B, 3, H, W] uint8 to features [B, 64] and logits [B, K].

    `scale` brings the features' mean variance over the training images to 1.

    Args:
        weights: a file that `train` wrote; random weights for as many classes unless given.
    """

    scale: Tensor

    def __init__(self, weights: Path | None = None, num_classes: int = 10):
        super().__init__()
        tensors = {} if weights is None else load_file(weights)
        if tensors:
            num_classes = len(tensors["logits.weight"])
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *WIDTHS), WIDTHS, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)  # [B, 128, 4, 4]
        self.features = nn.Linear(WIDTHS[-1] * (SIDE // 8) ** 2, FEATURES)
        self.logits = nn.Linear(FEATURES, num_classes)
        self.register_buffer("scale", torch.ones(()))
        if tensors:
            self.load_state_dict(tensors)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.from_pixels(to_pixels(images))

    def from_pixels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, 32, 32] in [-1, 1] -> features and logits."""
        hidden = F.silu(self.features(self.convolutions(x).flatten(1)))
        return hidden * self.scale, self.logits(hidden)


def to_pixels(images: Tensor) -> Tensor:
    """[B, 3, H, W] uint8 -> [B, 3, 32, 32] in [-1, 1]."""
    return resize(images.float(), [SIDE, SIDE], antialias=True) / 127.5 - 1


def train(images: Tensor, labels: Tensor) -> SmallFeatures:
    """Train on [N, 3, H, W] uint8 with random shifts, sizes, contrast and noise."""
    torch.manual_seed(0)
    network = SmallFeatures(num_classes=int(labels.max()) + 1)
    fit(network, network.from_pixels, to_pixels(images), labels, augment, EPOCHS)
    return network


def augment(x: Tensor) -> Tensor:
    """Move, scale and dim each image [B, 3, 32, 32] at random, and add noise."""
    count = len(x)
    theta = torch.eye(2, 3) * (0.9 + 0.2 * torch.rand(count, 1, 1))
    theta[:, :, 2] = (torch.rand(count, 2) - 0.5) / 4
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast = 0.7 + 0.4 * torch.rand(count, 1, 1, 1)
    noise = 0.1 * torch.rand(count, 1, 1, 1) * torch.randn_like(x)
    return (moved * contrast + noise).clamp(-1, 1)


@torch.no_grad()
def accuracy(network: SmallFeatures, images: Tensor, labels: Tensor) -> float:
    """Return the share of [N, 3, H, W] uint8 images recognised."""
    _, logits = network(images)
    return (logits.argmax(1) == labels).float().mean().item()


def learn(folder: Path) -> float:
    """Train on the images of a folder, write FOLDER.safetensors, return the held-out accuracy."""
    data = ImageFolder(folder, SIDE)
    images = torch.stack([data[index] for index in range(len(data))])
    labels = torch.from_numpy(data.labels)
    test = torch.from_numpy(held_out(np.asarray(data.labels)))
    network = train(images[~test], labels[~test])
    save_file(network.state_dict(), folder.with_suffix(".safetensors"))
    return accuracy(network, images[test], labels[test])


def main() -> None:
    """Train on four fifths, report on the last, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="images, one subfolder a class")
    folder = parser.parse_args().folder
    print(f"{learn(folder):.1%} of the held-out fifth recognised; {folder}.safetensors")


if __name__ == "__main__":
    main()
