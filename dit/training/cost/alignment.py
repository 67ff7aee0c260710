"""FLOPs of --align: the teacher's pass, and the projector."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from dit.build import build_network
from dit.config import TrainConfig
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.vision import VisionEncoder
from dit.models.alignment import Projector, late_tokens
from dit.models.dit import DiT
from dit.models.registry import multiply_adds_of, zero_inputs
from dit.runs.card import ModelCard, NetworkSpec
from dit.utils.image_size import sides


def alignment_flops(
    spec: NetworkSpec,
    config: TrainConfig,
    text_tokens: int = 0,
    autoencoder: Autoencoder | None = None,
    vision: VisionEncoder | None = None,
) -> float:
    """Return the FLOPs of --align for one image, while it lasts; 0 without it.

    Args:
        autoencoder, vision: of an encoder as the teacher, which is not counted unless they are
            given. The EMA needs neither.
    """
    if config.align is None or (config.align != "self" and vision is None):
        return 0.0
    with torch.device("meta"):
        network = build_network(spec)
        assert isinstance(network, DiT)
        _, places, size = network.pos_embed.shape
        projector = Projector(size, vision.width if vision else size, network.grid)
        # twice as many backward
        projected = 3 * _flops(projector, torch.zeros(1, places, size))
        if vision is None:
            inputs = zero_inputs(spec.model, 1, text_tokens, **spec.sizes)
            return projected + _flops(partial(late_tokens, network), *inputs)

    assert autoencoder is not None
    return projected + encoder_flops(vision) + decoder_flops(autoencoder, spec.input_size)


def mean_alignment_flops(
    card: ModelCard,
    steps: int,
    text_tokens: int = 0,
    autoencoder: Autoencoder | None = None,
    vision: VisionEncoder | None = None,
) -> float:
    """Return the FLOPs of --align for one image, in the mean of the first `steps` of a run."""
    flops = alignment_flops(card.network, card.config, text_tokens, autoencoder, vision)
    return aligned_share(card, steps) * flops


def aligned_share(card: ModelCard, steps: int) -> float:
    """Return the share of the first `steps` of a run in which --align lasts."""
    return min(1.0, (card.align_steps or 0) / steps)


def encoder_flops(vision: VisionEncoder) -> float:
    """Return the FLOPs of an encoder's pass."""
    with FakeTensorMode(allow_non_fake_inputs=True), vision.mean.device:
        return _flops(vision.network.forward_features, torch.zeros(1, 3, *vision.size))


def decoder_flops(autoencoder: Autoencoder, latents: int | tuple[int, int]) -> float:
    """Return the FLOPs to decode an image; none for pixels."""
    network = getattr(autoencoder.codec, "network", None)
    if network is None:
        return 0.0
    # a dry run may have it without weights, on the meta device
    with FakeTensorMode(allow_non_fake_inputs=True), network.device:
        z = torch.zeros(1, autoencoder.channels, *sides(latents))
        return _flops(autoencoder.codec.pixels, z)


def _flops(function: Callable[..., object], *inputs: Tensor) -> float:
    return 2.0 * multiply_adds_of(function, inputs)
