"""A discriminator of patches, and the game that a first stage plays with it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit.config import VaeConfig
from dit.utils.image_size import sides


class PatchGAN(nn.Module):
    """Whether each patch of an image is real: [B, 3, H, W] -> logits [B, 1, h, w] (1611.07004, section 6.1.2).

    Args:
        depth: convolutions that halve the sides; 3, for patches of 70 pixels, in the paper.
    """

    def __init__(self, depth: int, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, depth + 1):
            ins, outs, stride = (
                width * min(2 ** (i - 1), 8),
                width * min(2**i, 8),
                2 if i < depth else 1,
            )
            layers += [
                nn.Conv2d(ins, outs, 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(outs),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * min(2**depth, 8), 1, 4, padding=1))
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of patches, above 0 for real ones."""
        return self.layers(x)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on logits of real and of reconstructed patches (1705.02894)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction: Tensor, verdict: Tensor, last: Tensor) -> Tensor:
    """The ratio of the gradients of both losses at the decoder's last layer (2012.09841, Eq. 7), at most 10,000."""
    ours, theirs = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (reconstruction, verdict)
    )
    return (ours / (theirs + 1e-6)).clamp(max=1e4).detach()


class GanLoss:
    """A discriminator, its optimizer, and its part in the autoencoder's loss."""

    def __init__(self, cfg: VaeConfig, device: torch.device):
        self.weight, self.start = cfg.gan_weight, cfg.gan_start or 0
        depth = min(
            3, max(1, int(math.log2(min(sides(cfg.image_size)))) - 3)
        )  # 3 from 64 pixels on
        self.network = PatchGAN(depth).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), cfg.lr, betas=(0.5, 0.9), weight_decay=0.0
        )

    def verdict(
        self, output: Tensor, reconstruction: Tensor, last: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the autoencoder is to lower beside `reconstruction`, and what is logged."""
        verdict = -self.network(output).float().mean()
        weight = adaptive_weight(reconstruction, verdict, last)
        return self.weight * weight * verdict, {"verdict": verdict, "gan_weight": weight}

    def learn(self, x: Tensor, output: Tensor, lr: float) -> Tensor:
        """One step of the discriminator on images and reconstructions [B, 3, H, W]; its loss."""
        loss = hinge(self.network(x).float(), self.network(output.detach()).float())
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss
