"""The training step of a first stage."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit.commands.train_vae.discriminator import GanLoss
from dit.commands.train_vae.losses import FORWARD, KLForward, VQForward, load_lpips
from dit.commands.train_vae.networks import create_network
from dit.config import VaeConfig
from dit.distributed.device import autocast


@dataclass(frozen=True)
class Learner:
    """A network in training, with its losses, optimizer and learning-rate schedule.

    Attributes:
        lpips: LPIPS of two batches of images in [-1, 1], or None.
    """

    network: Any
    forward: KLForward | VQForward
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    lpips: Any | None
    gan: GanLoss | None
    device: torch.device

    @classmethod
    def create(cls, cfg: VaeConfig, device: torch.device) -> "Learner":
        """Create an untrained network from a resolved config."""
        network = create_network(cfg).to(device).train()
        optimizer = torch.optim.AdamW(
            network.parameters(), cfg.lr, betas=(0.9, 0.99), weight_decay=0.0
        )
        # a warmup of one step in ten has no length in OneCycleLR, which divides by it
        warmup = 0.1 if cfg.steps != 10 else 0.2
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, cfg.lr, max(2, cfg.steps), pct_start=warmup, cycle_momentum=False
        )
        return cls(
            network,
            FORWARD[cfg.kind](cfg),
            optimizer,
            schedule,
            load_lpips(cfg.lpips).to(device) if cfg.lpips else None,
            GanLoss(cfg, device) if cfg.gan_weight else None,
            device,
        )

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, number: int, x: Tensor, noise: Tensor, cfg: VaeConfig) -> dict[str, Tensor]:
        """Do a step on pixels [B, 3, H, W] in [-1, 1]; return values to log, `loss` first."""
        gan = self.gan if self.gan and number >= self.gan.start else None
        with autocast(self.device, cfg.precision):
            output, regulariser, terms = self.forward(self.network, x, noise)
            reconstruction = F.l1_loss(output, x)
            terms = {"l1": reconstruction, **terms}
            if self.lpips:
                assert cfg.lpips_weight is not None
                terms["lpips"] = self.lpips(output, x).mean()
                reconstruction = reconstruction + cfg.lpips_weight * terms["lpips"]

            loss = reconstruction + regulariser
            if gan:
                # balanced with the reconstruction, without the regulariser (2012.09841, eq. 7)
                last = self.network.decoder.conv_out.weight
                adversarial, logged = gan.autoencoder_loss(output, reconstruction, last)
                loss = loss + adversarial
                terms |= logged

        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if gan:
            with autocast(self.device, cfg.precision):
                terms["discriminator"] = gan.train_discriminator(x, output, self.lr)
        self.schedule.step()
        logged = {"loss": loss, **terms}
        return {name: value.detach() for name, value in logged.items()}
