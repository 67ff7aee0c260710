"""From configuration and data to all that a training needs."""

from collections.abc import Set
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from dit.build import build_loss, build_network, build_process, require_size
from dit.config import TrainConfig
from dit.diffusion.weighting import LossAwareSampler
from dit.distributed.activation_checkpoint import activation_checkpointing
from dit.distributed.device import autocast, choose_attention
from dit.distributed.float8 import convert_to_float8
from dit.distributed.parallel import shard, warm_up_ddp, wrap_ddp_and_compile
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import Captioned, Captions, TextEncoder
from dit.errors import UserError
from dit.latents.store import Latents
from dit.models.registry import blank_inputs, is_classifier
from dit.runs.card import ModelCard, NetworkSpec, class_mismatch
from dit.training import checkpointing as checkpoint
from dit.training.cost.ddp_or_fsdp import Choice, choose
from dit.training.ema import EMA, PowerEMA
from dit.training.finetune import initialise
from dit.training.lr_schedule import total_steps
from dit.training.run_directory import open_run
from dit.training.running_means import RunningMeans
from dit.training.session import TrainingSession
from dit.training.spike_guard import SpikeGuard
from dit.training.state import State
from dit.utils.hub import absolute_if_local
from dit.utils.image_size import size_of

MOST_CAPTIONS = 10_000  # that a run remembers of its data


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration as a card keeps it: other networks' folders by absolute paths, to be found from anywhere."""
    encoder = config.text_encoder and absolute_if_local(config.text_encoder)
    return replace(config, vae=absolute_if_local(config.vae), text_encoder=encoder)


def build_card(
    config: TrainConfig,
    source: Latents,
    encoder: TextEncoder | None = None,
    parent_card: ModelCard | None = None,
) -> ModelCard:
    """Describe the network that this configuration trains on this data.

    Args:
        parent_card: of a network whose latent statistics and classes it shares; statistics are measured on the data unless
            given.

    Raises:
        UserError: --num-classes is neither 0 nor enough for the data, or above 0 for data without classes; classes are
            named otherwise than those of `parent_card`, or fewer than a classifier tells apart; or a size that the network
            can not take.
    """
    config = with_absolute_paths(config)
    found = len(source.classes)
    num_classes = found if config.num_classes is None else config.num_classes
    if num_classes and not found and parent_card:
        raise UserError(
            f"--data {config.data} has no classes, the run has {num_classes}",
            "the same classes for both",
            "make a subfolder for each of the run's classes (see `dit info RUN`)",
        )
    if num_classes and not found:
        raise UserError(
            f"--num-classes {num_classes} for data without classes",
            "0, or one subfolder per class",
            "drop --num-classes to train without classes",
        )
    if 0 < num_classes < found:
        raise UserError(
            f"--num-classes {num_classes} for data with {found} classes",
            f"{found} or more, or 0 for none",
            "drop --num-classes to count them in the data",
        )
    if is_classifier(config.model) and found < 2:
        raise UserError(
            f"--model {config.model} with --data {config.data}, which has {found or 'no'} classes",
            "two or more, to tell apart",
            "pass --data with one subfolder of images per class",
        )
    channels, *size = source.shape
    spec = NetworkSpec(
        model=config.model,
        input_size=size_of(*size),
        in_channels=channels,
        num_classes=num_classes,
        learn_sigma=config.learn_sigma,
        conditioning=config.conditioning,
        text_width=encoder.width if encoder else None,
        unet_attention=config.unet_attention,
    )
    require_size(config.image_size, spec, config.vae)
    classes = source.classes if num_classes else []
    card = ModelCard(
        config=config,
        network=spec,
        classes=classes[:MOST_CAPTIONS] if encoder else classes,
        text_encoder_sha256=encoder.checksum if encoder else None,
    )
    if parent_card and (other := class_mismatch(card, parent_card)):
        label, there, here = other
        raise UserError(
            f"--data {config.data} has class {label} {there!r}, the run has {here!r}",
            "the same classes for both",
            "name the subfolders as the run's classes (see `dit info RUN`)",
        )
    if config.latent_norm == "vae":
        return card
    if parent_card:
        return replace(card, latent_mean=parent_card.latent_mean, latent_std=parent_card.latent_std)
    mean, std = source.statistics()
    return replace(card, latent_mean=mean.tolist(), latent_std=std.tolist())


def prepare(
    card: ModelCard,
    source: Latents,
    autoencoder: Autoencoder,
    ranks: Ranks,
    encoder: TextEncoder | None = None,
) -> TrainingSession:
    """Network, optimizer and averages, fresh or as the checkpoint left them."""
    config = card.config
    run, last = open_run(card, len(source.labels), ranks)
    choice = choose(card, autoencoder, encoder, ranks)
    torch.manual_seed(config.seed)
    network = build_network(card.network)
    if config.init and not last:
        initialise(network, card, config.init)
    ema, profiles = (
        EMA(network, config.ema),
        tuple(PowerEMA(network, length) for length in config.ema_lengths),
    )
    if config.precision == "fp8":  # after the averages' copies, which are sampled from
        convert_to_float8(network)
    activation_checkpointing(network, config.recompute)
    fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    for each in (network, *(average.network for average in (ema, *profiles))):
        shard_or_move(each, fixed, config, ranks, choice)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, config.lr, (0.9, config.beta2), weight_decay=config.weight_decay, fused=True
    )
    compiled = ranks.device.type == "cuda" if config.compile is None else config.compile
    process, calls = build_process(config), wrap_ddp_and_compile(network, ranks, compiled)
    with autocast(ranks.device, config.precision):
        warm_up_ddp(calls, partial(blanks, card, ranks, encoder))
    captions = Captions(source.classes, "", encoder) if encoder else None
    loss, terms = build_loss(config, Captioned(calls, captions) if captions else calls, process)
    times = LossAwareSampler(int(process.end)) if config.time_sampling == "loss-aware" else None
    state = State(
        network,
        optimizer,
        ema,
        RunningMeans(("loss", "grad_norm", *terms), ranks.device),
        SpikeGuard(config.spike, ranks.device),
        times,
        profiles,
    )
    start = checkpoint.load(last, state, ranks) if last else 0
    return TrainingSession(
        run,
        card,
        ranks,
        source,
        autoencoder,
        state,
        calls,
        process,
        loss,
        start,
        total_steps(config, len(source.labels)),
        choice,
        captions,
    )


def blanks(card: ModelCard, ranks: Ranks, encoder: TextEncoder | None) -> tuple[Tensor, ...]:
    """What the network takes in a micro-batch, as zeros."""
    micro = card.config.global_batch_size // (ranks.world * card.config.grad_accum)
    inputs = blank_inputs(
        card.network.model, micro, encoder.length if encoder else 0, **card.network.sizes
    )
    return tuple(part.to(ranks.device) for part in inputs)


def shard_or_move(
    network: nn.Module, fixed: Set[str], config: TrainConfig, ranks: Ranks, choice: Choice
) -> None:
    """Bring a network, or this rank's share of it, to its device, with the attention that is quicker there."""
    choose_attention(network, ranks.device, config.precision)
    if choice.parallel == "fsdp" and ranks.world > 1:
        shard(network, fixed, ranks, config.precision)
    else:
        network.to(ranks.device)
