"""What a first stage is trained for: likeness of the reconstruction, and latents that diffusion can learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dit.commands.train_vae.codebook import nearest_entries, perplexity, restart, usage
from dit.config import VaeConfig
from dit.errors import UserError
from dit.evaluation.extractors.weights import read_tensors, shapes

VGG = "vgg16-397923af.pth"  # as torchvision names it
RESTART_EVERY = 20  # steps


class Pass(NamedTuple):
    """What a first stage makes of pixels."""

    output: Tensor  # [B, 3, H, W]
    regulariser: Tensor
    terms: dict[str, Tensor]  # to log


class KL:
    """weight * KL(posterior || standard normal) per latent value (1312.6114, appendix B)."""

    def __init__(self, cfg: VaeConfig):
        assert cfg.kl_weight is not None
        self.weight = cfg.kl_weight

    def __call__(self, network: Any, x: Tensor, noise: Tensor) -> Pass:
        """Of an AutoencoderKL: pixels [B, 3, H, W] in [-1, 1] and standard normal noise [B, C, h, w]."""
        posterior = network.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + (logvar / 2).exp() * noise.to(mean)
        divergence = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
        return Pass(network.decode(z).sample.float(), self.weight * divergence, {"kl": divergence})


class VQ:
    """|sg[z] - e|^2 + commitment * |z - sg[e]|^2 per latent value, z rounded to its entry e (1711.00937, Eq. 3).

    The decoder's gradient goes straight through the rounding. diffusers' own loss has the commitment's weight on the
    other of the two terms. In the first half of training, entries that nothing was rounded to for a while start anew.
    """

    def __init__(self, cfg: VaeConfig):
        assert cfg.commitment is not None
        assert cfg.codebook_size is not None
        self.commitment, self.size = cfg.commitment, cfg.codebook_size
        self.steps, self.last_restart = 0, cfg.steps // 2
        self.counts = torch.zeros(self.size, dtype=torch.int64)
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __call__(self, network: Any, x: Tensor, noise: Tensor) -> Pass:
        """Of a VQModel: pixels [B, 3, H, W] in [-1, 1]; it has no use for noise."""
        z = network.encode(x).latents.float()
        book = network.quantize.embedding
        if self.steps % RESTART_EVERY == 0 and self.steps <= self.last_restart:
            restart(book.weight, self.counts == 0, z, self.generator)
            self.counts.zero_()
        entries = nearest_entries(book.weight, z)
        used = usage(entries, self.size).cpu()
        self.steps, self.counts = self.steps + 1, self.counts + used
        e = book(entries).movedim(-1, 1)
        codebook, commitment = (z.detach() - e).square().mean(), (z - e.detach()).square().mean()
        output = network.decode(z + (e - z).detach(), force_not_quantize=True).sample.float()
        return Pass(
            output,
            codebook + self.commitment * commitment,
            {"codebook": codebook, "perplexity": perplexity(used)},
        )


KINDS: dict[str, Callable[[VaeConfig], KL | VQ]] = {"kl": KL, "vq": VQ}


# -- perceptual loss -------------------------------------------------------------------------------------------------


def load_lpips(path: Path) -> nn.Module:
    """LPIPS (1801.03924) of VGG16, frozen: ([B, 3, H, W], the same) in [-1, 1] -> [B, 1, 1, 1].

    The linear heads are those that torchmetrics ships; VGG16's weights come from a file and nowhere else.

    Raises:
        UserError: no such file, damaged, more than tensors, or not VGG16's.
    """
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import vgg16

    if not path.is_file():
        raise UserError(f"no file {path} for --lpips", f"torchvision's {VGG}", "check the path")
    given = read_tensors(path, VGG)
    with torch.device("meta"):
        expected = {
            f"features.{name}": shape
            for name, shape in shapes(vgg16().features.state_dict()).items()
        }
    found = shapes(given)
    if wrong := next((name for name in expected if found.get(name) != expected[name]), None):
        raise UserError(
            f"--lpips {path} is not VGG16: tensor {wrong} is {found.get(wrong, 'missing')}",
            f"{expected[wrong]}, as in torchvision's {VGG}",
            "pass that file",
        )
    network = _LPIPS(net="vgg", pnet_rand=True)
    for part in network.net.children():
        part.load_state_dict(
            {name: given[f"features.{name}"].float() for name in part.state_dict()}
        )
    return network
