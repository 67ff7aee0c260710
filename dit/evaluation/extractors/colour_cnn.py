"""The small feature network for colour images, and the script that trained the bundled weights.

    python -m benchmarks.image_sets emoji-64
    python -m dit.evaluation.extractors.colour_cnn data/emoji-64 --out colour-cnn.safetensors

Every image is a class of its own, and the network learns to recognise it moved, turned, scaled and
dimmed (1406.6909). The images are four fifths of the emoji and crops of the two photographs of
scikit-learn. Scores on its features rank checkpoints of one run, and are never called FID.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from dit.evaluation.extractors.digits_cnn import fit, held_out

SIZE = 64  # pixels
CHANNELS = (32, 64, 96, 96)  # of convolutions that halve the sides
LEARNED = 64  # features of the last layer
WIDTH = 2 * CHANNELS[0] + LEARNED  # all features
# Deviation of the learned features; that of the others is 1. They vary more from image to image:
# at the same deviation their noise would hide blur and JPEG in the others.
LEARNED_DEVIATION = 0.5
CROPS = 300  # of each photograph
EPOCHS = 30


class ColourCNN(nn.Module):
    """[B, 3, H, W] uint8 of any size to features [B, 128].

    Half of them are means and deviations over the image after the first convolution, for colour,
    sharpness and noise. The others are of the last layer, for shape. `scale` brings the deviation
    of each over the images of training to 1, or to `LEARNED_DEVIATION`.

    Args:
        classes: images that it is trained to recognise; 0 leaves out the layer for them.
    """

    scale: Tensor

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *CHANNELS), CHANNELS, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            layers.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU()))
        self.edges = layers[0]  # [B, 32, 32, 32]
        self.shapes = nn.Sequential(*layers[1:])  # [B, 96, 4, 4]
        self.features = nn.Linear(CHANNELS[-1] * (SIZE // 16) ** 2, LEARNED)
        self.logits = nn.Linear(LEARNED, classes) if classes else None
        self.register_buffer("scale", torch.ones(WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> features [B, 128]."""
        return self.from_pixels(to_pixels(images))[0]

    def from_pixels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, 64, 64] in [-1, 1] -> features, and logits of the images of training."""
        edges = self.edges(x)
        learned = F.silu(self.features(self.shapes(edges).flatten(1)))
        means, deviations = edges.mean(dim=(2, 3)), edges.std(dim=(2, 3))
        features = torch.cat([means, deviations, learned], dim=1)
        logits = self.logits(learned) if self.logits else learned
        return features * self.scale, logits


def to_pixels(images: Tensor) -> Tensor:
    """[B, 3, H, W] uint8 -> [B, 3, 64, 64] in [-1, 1], bilinear with antialiasing."""
    return resize(images.float(), [SIZE, SIZE], antialias=True) / 127.5 - 1


# -- training --------------------------------------------------------------------------------------


def train(images: Tensor) -> ColourCNN:
    """Train on [N, 3, H, W] uint8 images, each a class of its own."""
    torch.manual_seed(0)
    network = ColourCNN(classes=len(images))
    x = to_pixels(images)
    fit(network, network.from_pixels, x, torch.arange(len(images)), augment, EPOCHS)
    network.logits = None

    network.scale.fill_(1)
    with torch.no_grad():
        features, _ = network.from_pixels(x)
    network.scale.copy_(features.std(dim=0).clamp(min=1e-3).reciprocal())
    network.scale[-LEARNED:] *= LEARNED_DEVIATION
    return network


def augment(x: Tensor) -> Tensor:
    """Move, turn, scale and dim each image [B, 3, H, W] at random.

    Colours stay, and nothing is blurred or noisy: features must tell such images apart.
    """
    count = len(x)
    angle = (torch.rand(count) - 0.5) * 0.4  # radians
    size = 0.8 + 0.4 * torch.rand(count)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() * size
    theta[:, 0, 1] = -angle.sin() * size
    theta[:, 1, 0] = angle.sin() * size
    theta[:, :, 2] = (torch.rand(count, 2) - 0.5) / 4
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    light = 0.85 + 0.15 * torch.rand(count, 1, 1, 1)
    return (moved + 1) * light - 1


@torch.no_grad()
def retrieval(network: ColourCNN, images: Tensor) -> float:
    """Return the share of changed images [N, 3, H, W] whose nearest features are their own."""
    torch.manual_seed(1)
    x = to_pixels(images)
    own, _ = network.from_pixels(x)
    changed, _ = network.from_pixels(augment(x))
    nearest = torch.cdist(changed, own).argmin(dim=1)
    return (nearest == torch.arange(len(x))).float().mean().item()


def crop_photographs() -> Tensor:
    """Return random crops [N, 3, 64, 64] of scikit-learn's photographs, of 64 to 256 pixels."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    crops = []
    for photograph in load_sample_images().images:
        pixels = torch.tensor(photograph).permute(2, 0, 1)
        for _ in range(CROPS):
            side = int(rng.integers(SIZE, 4 * SIZE))
            top, left = (int(rng.integers(0, n - side)) for n in pixels.shape[1:])
            crop = pixels[:, top : top + side, left : left + side]
            crops.append(resize(crop, [SIZE, SIZE], antialias=True))
    return torch.stack(crops)


def main() -> None:
    """Train, report on the held-out fifth of the folder, save."""
    from safetensors.torch import save_file

    from dit.data.images import ImageFolder

    parser = argparse.ArgumentParser(description="Train the feature network for colour images.")
    parser.add_argument("folder", type=Path, help="images, one subfolder a class")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.safetensors)")
    args = parser.parse_args()

    data = ImageFolder(args.folder, SIZE)
    images = torch.stack([data[index] for index in range(len(data))])
    unseen = torch.from_numpy(held_out(np.asarray(data.labels)))
    network = train(torch.cat([images[~unseen], crop_photographs()]))
    share = retrieval(network, images[unseen])
    print(f"{share:.1%} of {int(unseen.sum())} held-out images found again when moved and dimmed")
    save_file(network.state_dict(), args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
