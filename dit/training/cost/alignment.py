"""FLOPs of --align: the teacher's pass, and the projector."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit.build import count_multiply_adds
from dit.encoders.autoencoder import Autoencoder, build_codec
from dit.encoders.vision import VisionEncoder
from dit.models.dit import DiT
from dit.models.parts import late_block
from dit.models.registry import multiply_adds_of
from dit.training.inputs import RunInputs
from dit.utils.image_size import sides


def alignment_flops(network: nn.Module, inputs: RunInputs) -> float:
    """Return the FLOPs of --align for one image, while it lasts."""
    assert isinstance(network, DiT)
    _, places, size = network.pos_embed.shape
    spec, vision = inputs.card.network, inputs.vision
    if vision:
        teacher = encoder_flops(vision) + decoder_flops(inputs.autoencoder, spec.input_size)
    else:
        tokens = inputs.encoder.length if inputs.encoder else 0
        share = late_block(len(network.blocks)) / len(network.blocks)
        teacher = 2.0 * share * count_multiply_adds(spec, tokens)
    # 3 x 3 products a token, and twice as many backward
    return teacher + 6.0 * 9 * places * size * (vision.width if vision else size)


def encoder_flops(vision: VisionEncoder) -> float:
    """Return the FLOPs of an encoder's pass."""
    network = _without_data(vision.network)
    return _flops(network.forward_features, torch.zeros(1, 3, *vision.size, device="meta"))


def decoder_flops(autoencoder: Autoencoder, latents: int | tuple[int, int]) -> float:
    """Return the FLOPs to decode an image; none for pixels."""
    network = getattr(autoencoder.codec, "network", None)
    if network is None:
        return 0.0
    codec = build_codec(_without_data(network))
    return _flops(
        codec.pixels, torch.zeros(1, autoencoder.channels, *sides(latents), device="meta")
    )


def _without_data(network: Any) -> Any:
    return copy.deepcopy(network).to("meta")


def _flops(function: Callable[[Tensor], object], inputs: Tensor) -> float:
    return 2.0 * multiply_adds_of(function, (inputs,))
