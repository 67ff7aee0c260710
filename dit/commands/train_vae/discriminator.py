"""The adversarial loss of a first stage: a discriminator of patches."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit.config import VaeConfig
from dit.utils.image_size import sides


class PatchGAN(nn.Module):
    """Logits of patches, above 0 for real ones: [B, 3, H, W] -> [B, 1, h, w] (1611.07004, 6.1.2).

    Args:
        depth: convolutions that halve the sides; 3, for patches of 70 pixels, in the paper.
    """

    def __init__(self, depth: int, width: int = 64):
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(depth + 1)]
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for i in range(1, depth + 1):
            stride = 2 if i < depth else 1
            before, after = widths[i - 1], widths[i]
            layers += [
                nn.Conv2d(before, after, 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of patches."""
        return self.layers(x)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss on logits of real and reconstructed patches (1705.02894)."""
    of_real = F.relu(1 - real).mean()
    of_fake = F.relu(1 + fake).mean()
    return (of_real + of_fake) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """Return the ratio of both losses' gradients at the decoder's last layer, at most 10,000."""
    ours, theirs = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    )
    return (ours / (theirs + 1e-6)).clamp(max=1e4).detach()  # 2012.09841, eq. 7


class GanLoss:
    """A discriminator, its optimizer, and the adversarial loss of the autoencoder."""

    def __init__(self, cfg: VaeConfig, device: torch.device):
        self.weight = cfg.gan_weight
        self.start = cfg.gan_start or 0
        # smaller patches for smaller images; 3 from 64 pixels on
        shorter = min(sides(cfg.image_size))
        depth = int(math.log2(shorter)) - 3
        depth = min(3, max(1, depth))
        self.network = PatchGAN(depth).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            cfg.lr,
            betas=(0.5, 0.9),
            weight_decay=0.0,
        )

    def autoencoder_loss(
        self, output: Tensor, reconstruction: Tensor, last: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted adversarial loss, and values to log.

        Args:
            output: reconstructed images [B, 3, H, W].
            reconstruction: the other losses, which the adversarial loss is balanced with.
            last: weight of the decoder's last layer.
        """
        adversarial = -self.network(output).float().mean()
        weight = adaptive_weight(reconstruction, adversarial, last)
        logged = {"verdict": adversarial, "gan_weight": weight}
        return self.weight * weight * adversarial, logged

    def train_discriminator(self, x: Tensor, output: Tensor, lr: float) -> Tensor:
        """Do one step on images and reconstructions [B, 3, H, W]; return the loss."""
        real = self.network(x).float()
        # detached: this loss trains the discriminator only
        fake = self.network(output.detach()).float()
        loss = hinge(real, fake)

        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss
