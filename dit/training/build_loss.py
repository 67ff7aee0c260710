"""The loss of a training: of its objective, with what --route, --inner-head and --align add."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from dit.config import TrainConfig
from dit.diffusion import classifier
from dit.diffusion.alignment import draws_of
from dit.diffusion.classifier import NoisyClassifier, classifier_loss
from dit.diffusion.meanflow import IntervalFlow, MeanFlowLoss, Tangent, mix_of
from dit.diffusion.objective import Loss, LossFunction, diffusion_loss, loss_terms, variational_loss
from dit.diffusion.process import Denoiser, Process
from dit.distributed.device import with_float64
from dit.models.parts import Parts
from dit.models.registry import count_tokens, is_classifier
from dit.models.routing import kept_tokens
from dit.runs.card import ModelCard

INNER_WEIGHT = 0.5  # of the inner head's loss


class AlignmentLoss(Protocol):
    """The loss of --align: against features of a teacher."""

    def features(self, *inputs: Tensor) -> Tensor:
        """Return the teacher's features [B, T, E] for the inputs of a loss."""

    def __call__(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Return the loss [B] of an early block's tokens [B, T, D]."""


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
        return PartsLoss(denoise, config, loss, align), terms + more
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


@dataclass(frozen=True)
class PartsLoss:
    """A loss of a network, with those of its inner head and of its early tokens: a `LossFunction`.

    Attributes:
        loss: of the prediction, as of `diffusion_loss`; of the inner head's too.
        align: the loss of the early tokens, while --align lasts.
    """

    denoise: Denoiser
    config: TrainConfig
    loss: Callable[..., Loss]
    align: AlignmentLoss | None

    def __call__(self, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, uniforms: Tensor) -> Loss:
        config, given = self.config, (x0, y, t, eps)
        draws = draws_of(config.align)
        uniforms, for_align = uniforms.split([uniforms.shape[1] - draws, draws], dim=1)
        keep = kept_tokens(uniforms, config.route) if config.route else None
        # before the network's pass, whose activations stay: the teacher's are gone by then
        features = self.align.features(*given, for_align) if self.align else None

        network = PartsReader(self.denoise.network, keep)
        total = self.loss(replace(self.denoise, network=network), *given)
        parts = network.parts
        assert parts is not None
        if config.inner_head:
            # the same target, from the same call
            weak: Any = parts.inner
            inner = self.loss(replace(self.denoise, network=lambda x, t, y: weak), *given)
            total = _plus(total, "inner", INNER_WEIGHT, inner.each)
        if config.align:
            # once it has ended, the log still has its column
            aligned = torch.zeros_like(total.each)
            if self.align and features is not None:
                aligned = self.align(parts.tokens, features)
            total = _plus(total, "align", config.align_weight, aligned)
        return total


@dataclass
class PartsReader:
    """A network that predicts as ever, and remembers all parts of its last call.

    Attributes:
        keep: tokens [B, K] that do not skip the middle blocks; all unless given.
    """

    network: Callable[..., Any]
    keep: Tensor | None
    parts: Parts | None = None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.parts = self.network(x, t, y, self.keep, True)
        return self.parts.out


def _plus(loss: Loss, name: str, weight: float, each: Tensor) -> Loss:
    """Return a loss with another one of each image [B] added."""
    return Loss(loss.each + weight * each, {**loss.terms, name: each.detach()})


def build_meanflow(
    config: TrainConfig,
    network: Callable[..., Tensor],
    tangent: Tangent,
    process: Process,
    null_label: int,
) -> tuple[LossFunction, tuple[str, ...]]:
    """Return the loss of --objective meanflow, and the names of its terms."""
    assert isinstance(process, IntervalFlow)
    loss = MeanFlowLoss(
        network,
        tangent,
        process,
        null_label,
        classic=config.meanflow_form == "classic",
        instant=config.meanflow_instant,
        scale=config.meanflow_scale,
        mix=mix_of(config.meanflow_scale, config.meanflow_mix),
    )
    return partial(_with_exact_times, loss), ("mse",)


def _with_exact_times(
    loss: LossFunction, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, uniforms: Tensor
) -> Loss:
    """Return a loss whose times and uniforms are where x0 is, or on the CPU without float64."""
    device = with_float64(x0.device)
    return loss(x0, y, t.to(device, non_blocking=True), eps, uniforms.to(device))


def count_uniforms(card: ModelCard) -> int:
    """Return how many random numbers the loss takes, an image, beside its time and its noise."""
    config = card.config
    # the earlier end of a step
    if config.objective == "meanflow":
        return 1
    tokens = 0
    if config.route:
        # one number a token decides which are kept
        tokens = count_tokens(card.network.model, card.network.input_size)
    return tokens + draws_of(config.align)
