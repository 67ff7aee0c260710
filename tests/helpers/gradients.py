"""Small networks of every kind, with inputs, and their gradients."""

import torch
from torch import nn

from dit.build import build_network
from dit.distributed.device import autocast
from dit.models.registry import zero_inputs
from dit.runs.card import NetworkSpec

CPU = torch.device("cpu")


def spec(model="DiT-Ti/4", **changes):
    shape = dict(input_size=8, in_channels=3, num_classes=10, learn_sigma=False)
    return NetworkSpec(model=model, **{**shape, **changes})


def made(kind: NetworkSpec) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A network whose every weight has a gradient, and a batch for it."""
    torch.manual_seed(0)
    network, (x, t, *y) = build_network(kind), zero_inputs(kind.model, 3, 8, **kind.sizes)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return network, (
        torch.randn_like(x),
        t + 0.5,
        *(torch.randn_like(v) if v.is_floating_point() else v for v in y),
    )


def gradients(network, inputs, precision="fp32"):
    network.zero_grad()
    with autocast(CPU, precision):
        out = network(*inputs)
    out.float().square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
