"""SiT (2401.08740) and REPA (2410.06940): transformers of a DiT's shape, trained by flow matching.

    here   x = (1 - t) data + t noise, v = noise - data, embeds 1000 t
    SiT    x = t data + (1 - t) noise, v = data - noise, embeds t, has unused outputs for a variance
    REPA   x = (1 - t) data + t noise, v = noise - data, embeds t, has unused `projectors`

What differs is absorbed into the weights, exactly. There remains the scale of the times: their
frequencies, 1 … 1/10000, are too low to be among ours for 1000 t, so it is a part of the network's
description.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dit.config import TrainConfig
from dit.models.embeddings import sinusoids
from dit.runs.card import NetworkSpec
from dit.runs.formats.state_dict import StateDict

TIME_SCALE = 1e-3  # they embed times 0 … 1, not 0 … 1000
TIMES = "t_embedder.mlp.0.weight"
OUTPUTS = ("final_layer.linear.weight", "final_layer.linear.bias")
PROJECTORS = "projectors."


def flow_spec(spec: NetworkSpec) -> NetworkSpec:
    """Return the description of a network of SiT or REPA, from that of a DiT with its tensors."""
    return replace(spec, learn_sigma=False, time_scale=TIME_SCALE)


def flow_config(release: TrainConfig) -> TrainConfig:
    """Return the configuration of SiT and REPA, which share data and optimizer with the release."""
    return replace(release, process="flow", objective="v", learn_sigma=False)


def from_sit(state_dict: StateDict) -> StateDict:
    """Return weights that predict noise - data at 1 - t, where SiT's predict data - noise at t."""
    converted = {**state_dict, TIMES: reversed_times(state_dict[TIMES])}
    for name in OUTPUTS:
        converted[name] = -state_dict[name]
    return converted


def reversed_times(weight: Tensor) -> Tensor:
    """Return the first layer [D, 256] of a time embedding that reads t where it read 1 - t.

    cos((1 - t) f) = cos(f) cos(t f) + sin(f) sin(t f)
    sin((1 - t) f) = sin(f) cos(t f) - cos(f) sin(t f)
    """
    one = torch.ones(1, dtype=torch.float64)
    cos_f, sin_f = sinusoids(one, weight.shape[1]).chunk(2, dim=1)
    of_cos, of_sin = weight.double().chunk(2, dim=1)

    new_of_cos = of_cos * cos_f + of_sin * sin_f
    new_of_sin = of_cos * sin_f - of_sin * cos_f
    return torch.cat([new_of_cos, new_of_sin], dim=1).to(weight.dtype)


def with_velocity_only(state_dict: StateDict, spec: NetworkSpec) -> StateDict:
    """Drop the outputs for a variance, which flows have no use for.

    Args:
        spec: of the DiT with these tensors.
    """
    return {**state_dict, **{name: velocity_rows(state_dict[name], spec) for name in OUTPUTS}}


def velocity_rows(tensor: Tensor, spec: NetworkSpec) -> Tensor:
    """Return the rows of the last layer, [p * p * 2C, …], that predict the velocity."""
    if not spec.learn_sigma:
        return tensor
    by_pixel = tensor.unflatten(0, (-1, 2 * spec.in_channels))
    return by_pixel[:, : spec.in_channels].flatten(0, 1)


def without_projectors(state_dict: StateDict) -> StateDict:
    """Drop REPA's projectors, which only training uses; number the blocks as its code does now."""
    encoder = [name for name in state_dict if name.endswith(".attn.qkv.weight")]
    depth = sum(name.startswith("blocks.") for name in encoder)
    kept = {}
    for name, tensor in state_dict.items():
        # early checkpoints number the blocks after the projectors from zero
        if name.startswith("decoder_blocks."):
            _, number, rest = name.split(".", 2)
            name = f"blocks.{int(number) + depth}.{rest}"
        if not name.startswith(PROJECTORS):
            kept[name] = tensor
    return kept
