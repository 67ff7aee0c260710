"""The training step of a first stage."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit.commands.train_vae.discriminator import GanLoss
from dit.commands.train_vae.losses import FORWARD, KLForward, VQForward, load_lpips
from dit.commands.train_vae.networks import create_network
from dit.config import VaeConfig
from dit.distributed.device import autocast
from dit.training.optimizer import create_moments


@dataclass(frozen=True)
class Learner:
    """A network in training, with its losses and optimizer.

    Attributes:
        lpips: LPIPS of two batches of images in [-1, 1], or None.
    """

    network: Any
    forward: KLForward | VQForward
    optimizer: torch.optim.Optimizer
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
        return cls(
            network,
            FORWARD[cfg.kind](cfg),
            optimizer,
            load_lpips(cfg.lpips).to(device) if cfg.lpips else None,
            GanLoss(cfg, device) if cfg.gan_weight else None,
            device,
        )

    def step(self, number: int, x: Tensor, noise: Tensor, cfg: VaeConfig) -> dict[str, Tensor]:
        """Do step `number`, from 1, on pixels [B, 3, H, W] in [-1, 1]; return values to log.

        The first is `loss`.
        """
        lr = learning_rate(cfg, number - 1)
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

        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if gan:
            with autocast(self.device, cfg.precision):
                terms["discriminator"] = gan.train_discriminator(x, output, lr)
        logged = {"loss": loss, **terms}
        return {name: value.detach() for name, value in logged.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that training changes, by its name in checkpoints; it all derives from these.

        The moments of an optimizer that has not done a step are not there.
        """
        tensors = _tensors_of("", self.network, self.optimizer)
        if self.gan:
            tensors |= _tensors_of("gan.", self.gan.network, self.gan.optimizer)
        if isinstance(self.forward, VQForward):
            tensors["codebook.counts"] = self.forward.counts
        return tensors

    def create_moments(self, names: Iterable[str]) -> None:
        """Create the moments of each optimizer that has some among the names of a checkpoint."""
        optimizers = {"optimizer.": self.optimizer}
        if self.gan:
            optimizers["gan.optimizer."] = self.gan.optimizer
        for prefix, optimizer in optimizers.items():
            if any(name.startswith(prefix) for name in names):
                create_moments(optimizer)


def _tensors_of(
    prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return the weights of a network, and the moments of its optimizer."""
    tensors = {f"{prefix}network.{name}": value for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"{prefix}optimizer.{name}.{key}": value for key, value in moments.items()}
    return tensors


def learning_rate(cfg: VaeConfig, step: int) -> float:
    """Return the rate of step `step`, from 0: one cycle (1708.07120) of two halves of a cosine.

    It rises from a 25th of --lr over a tenth of the steps, and falls to almost zero.
    """
    top = max(1.0, cfg.steps / 10 - 1)
    low, lowest = cfg.lr / 25, cfg.lr / 25e4
    if step <= top:
        return _cosine(low, cfg.lr, step / top)
    return _cosine(cfg.lr, lowest, (step - top) / (cfg.steps - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
