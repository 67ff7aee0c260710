"""Build the objects that a configuration names: process, network, loss, denoiser, text encoder."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dit.config import TrainConfig
from dit.diffusion import classifier
from dit.diffusion.alignment import draws_of
from dit.diffusion.classifier import NoisyClassifier, classifier_loss
from dit.diffusion.objective import Loss, LossFunction, diffusion_loss, loss_terms, variational_loss
from dit.diffusion.process import DDPM, Denoiser, Flow, Process
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import TextEncoder, load_text_encoder
from dit.encoders.vision import VisionEncoder, load_vision_encoder
from dit.errors import UserError, one_line
from dit.models.parts import Parts
from dit.models.registry import create_model, is_classifier, side_multiple, token_grid
from dit.models.routing import kept_tokens
from dit.runs.card import ModelCard, NetworkSpec
from dit.utils.image_size import Size, sides, size_flag, size_of

INNER_WEIGHT = 0.5  # of the inner head's loss


class AlignmentLoss(Protocol):
    """The loss of --align: against features of a teacher."""

    def features(self, *inputs: Tensor) -> Tensor:
        """Return the teacher's features [B, T, E] for the inputs of a loss."""

    def __call__(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Return the loss [B] of an early block's tokens [B, T, D]."""


def build_process(config: TrainConfig) -> Process:
    """Return the noise process of a run."""
    if config.process == "flow":
        assert config.time_shift != "auto", "a card has a number"
        return Flow(config.time_sampling, config.time_shift)
    return DDPM(config.process)


def build_network(spec: NetworkSpec) -> nn.Module:
    """Return a network with fresh weights."""
    return create_model(spec.model, **spec.sizes)


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


def build_loss(
    config: TrainConfig,
    network: Callable[..., Any],
    process: Process,
    align: AlignmentLoss | None = None,
) -> tuple[LossFunction, tuple[str, ...]]:
    """Return the loss that training minimises, and the names of its terms.

    Args:
        align: the loss of an early block's tokens, while --align lasts.
    """
    if is_classifier(config.model):
        classified = partial(classifier_loss, NoisyClassifier(network, process))
        return _without_uniforms(classified), classifier.TERMS

    denoise = Denoiser(network, process, config.objective, config.learn_sigma)
    loss: Callable[..., Loss] = variational_loss
    terms: tuple[str, ...] = ("vb",)
    if config.loss != "vlb":
        loss = partial(
            diffusion_loss,
            min_snr_gamma=config.min_snr_gamma,
            velocity=config.loss == "velocity",
            cosine=config.cosine,
        )
        terms = loss_terms(config.learn_sigma, config.cosine)
    if config.inner_head or config.align:
        more = ("inner",) * config.inner_head + ("align",) * bool(config.align)
        return partial(_loss_of_parts, denoise, config, loss, align), terms + more
    if config.route:
        return partial(_routed, denoise, config.route, loss), terms
    return _without_uniforms(partial(loss, denoise)), terms


def _without_uniforms(loss: Callable[..., Loss]) -> LossFunction:
    """Return a loss that draws nothing of its own as a LossFunction."""
    return lambda x0, y, t, eps, uniforms: loss(x0, y, t, eps)


def _routed(denoise: Denoiser, share: float, loss: Callable[..., Loss], *inputs: Tensor) -> Loss:
    """Return a loss of the network with this share of the tokens on the short road."""
    *inputs, uniforms = inputs  # type: ignore[assignment]
    keep = kept_tokens(uniforms, share)

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        # by position, as when DDP is warmed up: for a keyword the compiler would compile again
        return denoise.network(x, t, y, keep)  # type: ignore[call-arg]

    return loss(replace(denoise, network=network), *inputs)


def _loss_of_parts(
    denoise: Denoiser,
    config: TrainConfig,
    loss: Callable[..., Loss],
    align: AlignmentLoss | None,
    *inputs: Tensor,
) -> Loss:
    """Return a loss of a network, with those of its inner head and of its early tokens."""
    *given, uniforms = inputs
    draws = draws_of(config.align)
    uniforms, for_align = uniforms.split([uniforms.shape[1] - draws, draws], dim=1)
    keep = kept_tokens(uniforms, config.route) if config.route else None
    # before the network's pass, whose activations stay: the teacher's are gone by then
    features = align.features(*given, for_align) if align else None
    read: Callable[..., Any] = denoise.network
    calls: list[Parts] = []

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        calls.append(read(x, t, y, keep, True))
        return calls[0].out

    total = loss(replace(denoise, network=network), *given)
    (parts,) = calls
    if config.inner_head:
        # the same target, from the same call
        weak: Any = parts.inner
        inner = loss(replace(denoise, network=lambda x, t, y: weak), *given)
        total = _plus(total, "inner", INNER_WEIGHT, inner.each)
    if config.align:
        # once it has ended, the log still has its column
        aligned = torch.zeros_like(total.each)
        if align and features is not None:
            aligned = align(parts.tokens, features)
        total = _plus(total, "align", config.align_weight, aligned)
    return total


def _plus(loss: Loss, name: str, weight: float, each: Tensor) -> Loss:
    """Return a loss with another one of each image [B] added."""
    return Loss(loss.each + weight * each, {**loss.terms, name: each.detach()})


def build_denoiser(config: TrainConfig, network: Callable[..., Tensor]) -> Denoiser:
    """Return network and process as one."""
    return Denoiser(network, build_process(config), config.objective, config.learn_sigma)


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
