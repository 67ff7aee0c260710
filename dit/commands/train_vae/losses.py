"""The losses of a first stage: regularisation of latents, and the perceptual loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dit.commands.train_vae.codebook import (
    count_usage,
    nearest_entries,
    perplexity,
    restart_entries,
)
from dit.config import VaeConfig
from dit.data.sample_order import generator
from dit.errors import UserError
from dit.evaluation.extractors.weights import read_tensors, shapes

VGG = "vgg16-397923af.pth"  # torchvision's name of the file
RESTART_EVERY = 20  # steps


class ForwardPass(NamedTuple):
    """Reconstruction and regularisation of a batch."""

    output: Tensor  # [B, 3, H, W]
    regulariser: Tensor
    terms: dict[str, Tensor]  # to log


class KLForward:
    """weight * KL(posterior || standard normal) per latent value (1312.6114, appendix B)."""

    def __init__(self, cfg: VaeConfig):
        assert cfg.kl_weight is not None
        self.weight = cfg.kl_weight

    def __call__(self, network: Any, x: Tensor, noise: Tensor) -> ForwardPass:
        """Run an AutoencoderKL on pixels [B, 3, H, W] in [-1, 1], with noise [B, C, h, w]."""
        posterior = network.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + (logvar / 2).exp() * noise.to(mean)
        kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
        return ForwardPass(network.decode(z).sample.float(), self.weight * kl, {"kl": kl})


class VQForward:
    """|sg[z] - e|^2 + commitment * |z - sg[e]|^2 per latent value (1711.00937, eq. 3).

    e is the entry nearest to z, sg stops gradients. diffusers' own loss weights the other term.
    In the first half of training, unused entries are restarted.
    """

    def __init__(self, cfg: VaeConfig):
        assert cfg.commitment is not None
        assert cfg.codebook_size is not None
        self.commitment = cfg.commitment
        self.size = cfg.codebook_size
        self.steps = 0
        self.last_restart = cfg.steps // 2
        self.counts = torch.zeros(self.size, dtype=torch.int64)  # since the last restart
        self.seed = cfg.seed

    def __call__(self, network: Any, x: Tensor, noise: Tensor) -> ForwardPass:
        """Run a VQModel on pixels [B, 3, H, W] in [-1, 1]; the noise is not used."""
        z = network.encode(x).latents.float()
        embedding = network.quantize.embedding
        if self.steps % RESTART_EVERY == 0 and self.steps <= self.last_restart:
            # another stream of random numbers than that of the batch
            random = generator(self.seed, self.steps, 1)
            restart_entries(embedding.weight, self.counts == 0, z, random)
            self.counts.zero_()

        entries = nearest_entries(embedding.weight, z)
        used = count_usage(entries, self.size).cpu()
        self.steps += 1
        self.counts += used

        e = embedding(entries).movedim(-1, 1)
        codebook = (z.detach() - e).square().mean()
        commitment = (z - e.detach()).square().mean()
        # straight-through estimator: the decoder's gradient at e is that at z
        quantised = z + (e - z).detach()
        output = network.decode(quantised, force_not_quantize=True).sample.float()
        terms = {"codebook": codebook, "perplexity": perplexity(used)}
        return ForwardPass(output, codebook + self.commitment * commitment, terms)


FORWARD: dict[str, Callable[[VaeConfig], KLForward | VQForward]] = {
    "kl": KLForward,
    "vq": VQForward,
}


def load_lpips(path: Path) -> nn.Module:
    """Load LPIPS (1801.03924) of VGG16, frozen.

    It compares two batches [B, 3, H, W] in [-1, 1] -> [B, 1, 1, 1]. The linear heads are those in
    torchmetrics; VGG16's weights come from a file only.
    """
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import vgg16

    if not path.is_file():
        raise UserError(f"no file {path} for --lpips", f"torchvision's {VGG}", "check the path")
    weights = read_tensors(path, VGG)
    given = shapes(weights)
    with torch.device("meta"):
        features = shapes(vgg16().features.state_dict())
    for name, shape in features.items():
        key = f"features.{name}"
        if given.get(key) != shape:
            raise UserError(
                f"--lpips {path} is not VGG16: tensor {key} is {given.get(key, 'missing')}",
                f"{shape}, as in torchvision's {VGG}",
                "pass that file",
            )
    network = _LPIPS(net="vgg", pnet_rand=True)
    for part in network.net.children():
        state = {name: weights[f"features.{name}"].float() for name in part.state_dict()}
        part.load_state_dict(state)
    return network
