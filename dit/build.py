"""Build the objects that a configuration names: process, network, denoiser, encoders."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from dit.config import TrainConfig
from dit.diffusion.meanflow import IntervalFlow
from dit.diffusion.process import DDPM, Denoiser, Flow, Process
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import TextEncoder, load_text_encoder
from dit.encoders.vision import VisionEncoder, load_vision_encoder
from dit.errors import UserError, one_line
from dit.models.registry import (
    create_model,
    is_own,
    multiply_adds,
    multiply_adds_of,
    side_multiple,
    token_grid,
    zero_inputs,
)
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.own_network import build_own
from dit.utils.image_size import Size, sides, size_flag, size_of


def build_process(config: TrainConfig) -> Process:
    """Return the noise process of a run."""
    if config.process == "flow":
        assert config.time_shift != "auto", "a card has a number"
        kind = IntervalFlow if config.objective == "meanflow" else Flow
        return kind(config.time_sampling, config.time_shift)
    return DDPM(config.process)


def build_network(spec: NetworkSpec) -> nn.Module:
    """Return a network with fresh weights."""
    if is_own(spec.model):
        return build_own(spec)
    return create_model(spec.model, **spec.sizes)


def count_multiply_adds(
    spec: NetworkSpec, text_tokens: int = 0, route: float = 0.0, parts: bool = False
) -> int:
    """Return multiply-adds of a forward pass for one image: see `multiply_adds`."""
    if not is_own(spec.model):
        return multiply_adds(spec.model, text_tokens, route, parts, **spec.sizes)
    # not on the meta device, whose tensors do not mix with those that such a network creates
    with FakeTensorMode():
        return multiply_adds_of(build_own(spec), zero_inputs(spec.model, 1, 0, **spec.sizes))


def load_weights(network: nn.Module, state_dict: dict[str, Tensor], file: Path) -> None:
    """Load weights, read from `file`, into a network."""
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        cause = one_line(str(error).split("\n", 1)[-1])
        raise UserError(
            f"{file} does not fit its network ({cause})",
            "all of the network's tensors, in their shapes",
            "take another checkpoint",
        ) from None


def build_denoiser(config: TrainConfig, network: Callable[..., Tensor]) -> Denoiser:
    """Return network and process as one."""
    # at length 0 the average velocity is the velocity
    objective = "v" if config.objective == "meanflow" else config.objective
    return Denoiser(network, build_process(config), objective, config.learn_sigma)


def build_text_encoder(config: TrainConfig, device: torch.device) -> TextEncoder | None:
    """Return the caption encoder of a run with --conditioning text; for digits, the bundled one."""
    if config.conditioning != "text":
        return None
    return load_text_encoder(config.text_encoder or "digits", device)


def build_vision_encoder(
    config: TrainConfig, spec: NetworkSpec, device: torch.device
) -> VisionEncoder | None:
    """Return the encoder of --align, for as many patches as the network has tokens."""
    if config.align in (None, "self"):
        return None
    return load_vision_encoder(config.align, token_grid(spec.model, spec.input_size), device)


def require_size(image_size: Size, spec: NetworkSpec, vae: str) -> None:
    """Refuse an image size whose latents a network cannot cut into patches, or halve."""
    pixels, latents, multiple = sides(image_size), sides(spec.input_size), side_multiple(spec.model)
    if any(side % multiple for side in latents):
        unit = multiple * pixels[0] // latents[0]
        height, width = (max(1, round(side / unit)) * unit for side in pixels)
        raise UserError(
            f"{size_flag(image_size)} with {spec.model} on --vae {vae}",
            f"a multiple of {unit}",
            f"pass {size_flag(size_of(height, width))}, or choose another network",
        )


def with_data_statistics(autoencoder: Autoencoder, card: ModelCard) -> Autoencoder:
    """Return the autoencoder with the latent statistics of the data, if the run measured them."""
    if card.latent_mean is None or card.latent_std is None:
        return autoencoder
    return autoencoder.with_statistics(card.latent_mean, card.latent_std)
