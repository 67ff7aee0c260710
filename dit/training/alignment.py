"""Alignment in training (--align): a projector beside the network, and teachers of its tokens.

The projector is trained with the network and dropped after it: EMA and weights files have none.
B images, T tokens of an image, D features of a token, E features of the teacher.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dit.diffusion.alignment import alignment_loss, cleaner_times
from dit.diffusion.process import Process, add_noise, network_times
from dit.distributed.compiling import compile_sizes
from dit.distributed.device import autocast, with_float64
from dit.distributed.parallel import as_forward, warm_up_ddp, wrap_ddp_and_compile
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import Captioned, Captions
from dit.encoders.vision import VisionEncoder
from dit.models.alignment import Projector, late_tokens
from dit.training.build_networks import shard_or_move
from dit.training.inputs import RunInputs
from dit.training.session import TrainingPlan

Teacher = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x0, class ids, times, noise, uniforms [B, U]), as of a loss -> features [B, T, E]."""


@dataclass(frozen=True)
class Alignment:
    """The loss of an early block's tokens against a teacher.

    Args:
        projector: what is trained.
        wrapped: the same as DDP and the compiler wrap it.
        teacher: its features have no gradient.
    """

    projector: Projector
    wrapped: nn.Module
    teacher: Teacher

    @torch.no_grad()
    def features(self, *inputs: Tensor) -> Tensor:
        """Return the teacher's features [B, T, E] for the inputs of a loss."""
        return self.teacher(*inputs)

    def __call__(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Return the loss of each image, [B], of tokens [B, T, D] and features [B, T, E]."""
        return alignment_loss(self.wrapped(tokens).float(), features.float())


def build_alignment(
    network: Any,
    ema: nn.Module,
    process: Process,
    captions: Captions | None,
    inputs: RunInputs,
    plan: TrainingPlan,
    ranks: Ranks,
) -> Alignment | None:
    """Return the alignment that --align asks for, with a fresh projector; None without it."""
    if inputs.card.config.align is None:
        return None
    _, places, size = network.pos_embed.shape
    width = inputs.vision.width if inputs.vision else size
    projector = Projector(size, width, network.grid)
    shard_or_move(projector, set(), plan, ranks)

    # DDP apart from the network's: once --align has ended, nothing calls it
    wrapped = wrap_ddp_and_compile(projector, ranks, plan.compiled)
    blank = torch.zeros(plan.micro_batch, places, size, device=ranks.device)
    with autocast(ranks.device, plan.precision):
        warm_up_ddp(wrapped, lambda: (blank,))
    teacher = build_teacher(ema, process, captions, inputs, plan)
    return Alignment(projector, wrapped, teacher)


# -- teachers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelfTeacher:
    """A later block of the EMA, which sees the same image with less of the same noise.

    SRA (2505.02831) and Self-Flow (2603.06507) need no other network in this way.

    Args:
        features: latents, times and class ids to tokens [B, T, D]: `late_tokens` of the EMA.
        process: adds the noise.
    """

    features: Callable[[Tensor, Tensor, Tensor], Tensor]
    process: Process

    def __call__(self, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, uniforms: Tensor) -> Tensor:
        # where the uniforms are: a GPU's would have to be waited for
        device = with_float64(x0.device)
        t = t.to(device, non_blocking=True)
        earlier = cleaner_times(self.process, t, uniforms[:, 0].to(device))
        x_s = add_noise(self.process, x0, eps, earlier)
        return self.features(x_s, network_times(self.process, earlier, x_s), y)


@dataclass(frozen=True)
class EncoderTeacher:
    """A frozen encoder, which sees the clean image as the autoencoder decodes it.

    Latents alone are at hand, whatever the data: the features are those of the reconstruction.
    Decoder and encoder run in the precision of the training, as the encoder does in the code of
    2410.06940: under autocast, on weights in float32.
    """

    encoder: VisionEncoder
    autoencoder: Autoencoder

    def __call__(self, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, uniforms: Tensor) -> Tensor:
        return self.encoder.features(self.autoencoder.decode(x0))


def build_teacher(
    ema: nn.Module,
    process: Process,
    captions: Captions | None,
    inputs: RunInputs,
    plan: TrainingPlan,
) -> Teacher:
    """Return the teacher of --align: an encoder, or the EMA."""
    if inputs.vision:
        return EncoderTeacher(inputs.vision, inputs.autoencoder)
    features: Any = as_forward(ema, late_tokens)
    # FSDP2's hooks stay outside of what is compiled
    if plan.compiled and not isinstance(ema, FSDPModule):
        features = compile_sizes(features)
    return SelfTeacher(Captioned(features, captions) if captions else features, process)
