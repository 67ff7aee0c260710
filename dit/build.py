"""Build the objects that a configuration names: process, network, loss, denoiser, text encoder."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dit.config import TrainConfig
from dit.diffusion import classifier
from dit.diffusion.classifier import NoisyClassifier, classifier_loss
from dit.diffusion.meanflow import IntervalFlow, MeanFlowLoss, Tangent
from dit.diffusion.objective import Loss, LossFunction, diffusion_loss, loss_terms, variational_loss
from dit.diffusion.process import DDPM, Denoiser, Flow, Process
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import TextEncoder, load_text_encoder
from dit.errors import UserError, one_line
from dit.models.registry import create_model, is_classifier, side_multiple
from dit.models.routing import kept_tokens
from dit.runs.card import ModelCard, NetworkSpec
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
    config: TrainConfig, network: Callable[..., Tensor], process: Process
) -> tuple[LossFunction, tuple[str, ...]]:
    """Return the loss that training minimises, and the names of its terms."""
    if is_classifier(config.model):
        loss = partial(classifier_loss, NoisyClassifier(network, process))
        return _without_uniforms(loss), classifier.TERMS

    denoise = Denoiser(network, process, config.objective, config.learn_sigma)
    if config.loss == "vlb":
        return _without_uniforms(partial(variational_loss, denoise)), ("vb",)
    weighted = partial(
        diffusion_loss,
        min_snr_gamma=config.min_snr_gamma,
        velocity=config.loss == "velocity",
        cosine=config.cosine,
    )
    terms = loss_terms(config.learn_sigma, config.cosine)
    if config.route:
        return partial(_routed, denoise, config.route, weighted), terms
    return _without_uniforms(partial(weighted, denoise)), terms


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


def build_meanflow(
    config: TrainConfig,
    network: Callable[..., Tensor],
    tangent: Tangent,
    process: Process,
    null_label: int,
) -> tuple[LossFunction, tuple[str, ...]]:
    """Return the loss of --objective meanflow, and the names of its terms."""
    assert isinstance(process, IntervalFlow)
    scale, mix = config.meanflow_scale, config.meanflow_mix
    loss = MeanFlowLoss(
        network,
        tangent,
        process,
        null_label,
        classic=config.meanflow_form == "classic",
        instant=config.meanflow_instant,
        scale=scale,
        mix=1 - 1 / scale if mix is None else mix,
    )
    return loss, ("mse",)


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
