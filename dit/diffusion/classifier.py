"""A classifier of noised data: its gradient and its training loss (2105.05233, section 4)."""

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
    """A network from noised latents [B, C, H, W] and network times [B] to logits [B, K]."""

    network: Callable[[Tensor, Tensor], Tensor]
    process: Process

    def logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return logits [B, K] at times [] or [B]."""
        return self.network(x_t, network_times(self.process, t, x_t)).to(x_t.dtype)

    def gradient(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of log p(y | x_t) by x_t, for class ids y [B]."""
        # sampling runs in inference mode, whose tensors autograd refuses: take copies
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            log_p = self.logits(x, t.clone()).log_softmax(1)
            chosen = log_p.gather(1, y.clone()[:, None])
            return torch.autograd.grad(chosen.sum(), x)[0]


def classifier_loss(
    classifier: NoisyClassifier, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor
) -> Loss:
    """Return the cross-entropy at noised latents, in nats; arguments as of `diffusion_loss`."""
    logits = classifier.logits(add_noise(classifier.process, x0, eps, t), t)
    correct = (logits.argmax(1) == y).to(x0)
    return Loss(F.cross_entropy(logits, y, reduction="none"), {"accuracy": correct})
