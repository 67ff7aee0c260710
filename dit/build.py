"""From configuration to the objects of a run: network, process, loss, data, card."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dit.config import TrainConfig
from dit.diffusion import classifier
from dit.diffusion.classifier import NoisyClassifier, classifier_loss
from dit.diffusion.objective import LossFunction, diffusion_loss, loss_terms, variational_loss
from dit.diffusion.process import DDPM, Denoiser, Flow, Process
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import TextEncoder, load_text_encoder
from dit.errors import UserError
from dit.models.registry import create_model, is_classifier, side_multiple
from dit.runs.card import ModelCard, NetworkSpec
from dit.utils.image_size import Size, sides, size_flag, size_of


def build_process(config: TrainConfig) -> Process:
    """The noise process of a run."""
    if config.process == "flow":
        return Flow(config.time_sampling, config.time_shift)
    return DDPM(config.process)


def build_network(spec: NetworkSpec) -> nn.Module:
    """A fresh network."""
    return create_model(spec.model, **spec.sizes)


def load_weights(network: nn.Module, state_dict: dict[str, Tensor], file: Path) -> None:
    """Fill a network.

    Raises:
        UserError: tensors missing, unknown or of other shapes.
    """
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        cause = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise UserError(
            f"{file} does not fit its network ({cause})",
            "all of the network's tensors, in their shapes",
            "take another checkpoint",
        ) from None


def build_loss(
    config: TrainConfig, network: Callable[..., Tensor], process: Process
) -> tuple[LossFunction, tuple[str, ...]]:
    """What training descends, and the names of its terms."""
    if is_classifier(config.model):
        return partial(classifier_loss, NoisyClassifier(network, process)), classifier.TERMS
    denoise = Denoiser(network, process, config.objective, config.learn_sigma)
    if config.loss == "vlb":
        return partial(variational_loss, denoise), ("vb",)
    return partial(diffusion_loss, denoise, min_snr_gamma=config.min_snr_gamma), loss_terms(
        config.learn_sigma
    )


def build_denoiser(config: TrainConfig, network: Callable[..., Tensor]) -> Denoiser:
    """Network and process as one."""
    return Denoiser(network, build_process(config), config.objective, config.learn_sigma)


def build_text_encoder(config: TrainConfig, device: torch.device) -> TextEncoder | None:
    """What reads the captions of a run with --conditioning text, which for digits is the bundled one."""
    return (
        load_text_encoder(config.text_encoder or "digits", device)
        if config.conditioning == "text"
        else None
    )


def require_size(image_size: Size, spec: NetworkSpec, vae: str) -> None:
    """Refuse images whose latents a network can not cut into patches, or halve.

    Args:
        image_size: of the images that become latents of the size in `spec`.

    Raises:
        UserError: in the pixels that the user asked for.
    """
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
    """The autoencoder with the latent statistics of the data, where the run measured them."""
    if card.latent_mean is None or card.latent_std is None:
        return autoencoder
    return autoencoder.with_statistics(card.latent_mean, card.latent_std)
