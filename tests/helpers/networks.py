"""Small networks and inputs for tests of networks."""

import torch

from dit.models.conditioning import CONDITIONINGS
from dit.models.dit import DiT

IMAGENET = dict(input_size=32, in_channels=4, num_classes=1000, learn_sigma=True)
TRUNK = dict(
    input_size=8, patch_size=4, in_channels=3, hidden_size=16, depth=2, num_heads=2, num_classes=5
)
TEXT_WIDTH = 12


def fresh_dit(conditioning="adaln-zero", **changes):
    """Two blocks of width 16 on four tokens, as initialised."""
    torch.manual_seed(0)
    block, final_layer = CONDITIONINGS[conditioning]
    width = TEXT_WIDTH if conditioning == "text" else None
    options = dict(block=block, final_layer=final_layer, text_width=width)
    return DiT(**{**TRUNK, **options, **changes})


def perturbed_dit(conditioning="adaln-zero", **changes):
    return perturb(fresh_dit(conditioning, **changes))


def perturb(network, std=0.1):
    """Change all parameters, so that none of them is zero."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(std * torch.randn_like(p))
    return network


def inputs(conditioning="adaln-zero", n=3, size=(8, 8), channels=3):
    """x, t and y of n images, of which each has its own class or caption."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, *size, generator=generator)
    t = torch.rand(n, generator=generator) * 1000
    y = torch.arange(n)
    if conditioning == "text":
        y = torch.randn(n, 7, TEXT_WIDTH, generator=generator)
    return x, t, y


def without_gradient(network):
    """Names of parameters that got no gradient."""
    return {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}


def changed_images(one, other):
    """Which outputs of a batch differ: clearly, or by no more than float32 rounding."""
    moved = (one - other).abs().flatten(1).amax(dim=1)
    assert ((moved < 1e-5) | (moved > 1e-3)).all()
    return (moved > 1e-3).tolist()
