"""A classifier of noised data: its gradient, which guides, and the loss it learns by (2105.05233, section 4)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dit.diffusion.objective import Loss
from dit.diffusion.process import Process, add_noise, network_times

TERMS = ("accuracy",)


@dataclass(frozen=True)
class NoisyClassifier:
    """Reads a network's logits [B, K] of noised latents [B, C, H, W] at network times [B]."""

    network: Callable[[Tensor, Tensor], Tensor]
    process: Process

    def logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """[B, K] at times [] or [B]."""
        return self.network(x_t, network_times(self.process, t, x_t)).to(x_t.dtype)

    def gradient(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Of log p(y | x_t) with respect to x_t, for class ids y [B]; also inside `torch.inference_mode`."""
        with torch.inference_mode(False), torch.enable_grad():
            x, label = (
                x_t.detach().clone().requires_grad_(),
                y.clone(),
            )  # what inference made, autograd refuses
            chosen = self.logits(x, t.clone()).log_softmax(1).gather(1, label[:, None])
            return torch.autograd.grad(chosen.sum(), x)[0]


def classifier_loss(
    classifier: NoisyClassifier, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor
) -> Loss:
    """Cross-entropy of noised latents, in nats; arguments as of `diffusion_loss`, no label dropped."""
    logits = classifier.logits(add_noise(classifier.process, x0, eps, t), t)
    right = (logits.argmax(1) == y).to(x0)
    return Loss(F.cross_entropy(logits, y, reduction="none"), {"accuracy": right})
