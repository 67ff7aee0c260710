"""From configuration and data to all that a training needs."""

from collections.abc import Set
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from dit.build import build_loss, build_network, build_process, require_size
from dit.config import TrainConfig
from dit.diffusion.weighting import LossAware
from dit.distributed.activation_checkpoint import recompute
from dit.distributed.device import autocast, choose_attention
from dit.distributed.float8 import use_fp8
from dit.distributed.parallel import called, settle, shard
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import Captioned, Captions, TextEncoder
from dit.errors import UserError
from dit.latents.store import Latents
from dit.models.registry import blank_inputs, is_classifier
from dit.runs.card import Card, NetworkSpec, named_otherwise
from dit.training import checkpointing as checkpoint
from dit.training.cost.ddp_or_fsdp import Choice, choose
from dit.training.ema import EMA, Profile
from dit.training.finetune import initialise
from dit.training.lr_schedule import total_steps
from dit.training.run_directory import open_run
from dit.training.running_means import Window
from dit.training.session import Job
from dit.training.spike_guard import Guard
from dit.training.state import State
from dit.utils.hub import lasting
from dit.utils.image_size import size_of

MOST_CAPTIONS = 10_000  # that a run remembers of its data


def settled(config: TrainConfig) -> TrainConfig:
    """The configuration as a card keeps it: other networks' folders by absolute paths, to be found from anywhere."""
    encoder = config.text_encoder and lasting(config.text_encoder)
    return replace(config, vae=lasting(config.vae), text_encoder=encoder)


def build_card(config: TrainConfig, source: Latents, encoder: TextEncoder | None = None,
               kin: Card | None = None) -> Card:
    """Describe the network that this configuration trains on this data.

    Args:
        kin: of a network whose latent statistics and classes it shares; statistics are measured on the data unless
            given.

    Raises:
        UserError: --num-classes is neither 0 nor enough for the data, or above 0 for data without classes; classes are
            named otherwise than those of `kin`, or fewer than a classifier tells apart; or a size that the network
            can not take.
    """
    config = settled(config)
    found = len(source.classes)
    num_classes = found if config.num_classes is None else config.num_classes
    if num_classes and not found and kin:
        raise UserError(f"--data {config.data} has no classes, the run has {num_classes}", "the same classes for both",
                        "make a subfolder for each of the run's classes (see `dit info RUN`)")
    if num_classes and not found:
        raise UserError(f"--num-classes {num_classes} for data without classes", "0, or one subfolder per class",
                        "drop --num-classes to train without classes")
    if 0 < num_classes < found:
        raise UserError(f"--num-classes {num_classes} for data with {found} classes", f"{found} or more, or 0 for none",
                        "drop --num-classes to count them in the data")
    if is_classifier(config.model) and found < 2:
        raise UserError(f"--model {config.model} with --data {config.data}, which has {found or 'no'} classes",
                        "two or more, to tell apart", "pass --data with one subfolder of images per class")
    channels, *size = source.shape
    spec = NetworkSpec(model=config.model, input_size=size_of(*size), in_channels=channels, num_classes=num_classes,
                       learn_sigma=config.learn_sigma, conditioning=config.conditioning,
                       text_width=encoder.width if encoder else None, unet_attention=config.unet_attention)
    require_size(config.image_size, spec, config.vae)
    classes = source.classes if num_classes else []
    card = Card(config=config, network=spec, classes=classes[:MOST_CAPTIONS] if encoder else classes,
                text_encoder_sha256=encoder.checksum if encoder else None)
    if kin and (other := named_otherwise(card, kin)):
        label, there, here = other
        raise UserError(f"--data {config.data} has class {label} {there!r}, the run has {here!r}",
                        "the same classes for both", "name the subfolders as the run's classes (see `dit info RUN`)")
    if config.latent_norm == "vae":
        return card
    if kin:
        return replace(card, latent_mean=kin.latent_mean, latent_std=kin.latent_std)
    mean, std = source.statistics()
    return replace(card, latent_mean=mean.tolist(), latent_std=std.tolist())


def prepare(card: Card, source: Latents, autoencoder: Autoencoder, ranks: Ranks, encoder: TextEncoder | None = None
            ) -> Job:
    """Network, optimizer and averages, fresh or as the checkpoint left them."""
    config = card.config
    run, last = open_run(card, len(source.labels), ranks)
    choice = choose(card, autoencoder, encoder, ranks)
    torch.manual_seed(config.seed)
    network = build_network(card.network)
    if config.init and not last:
        initialise(network, card, config.init)
    ema, profiles = EMA(network, config.ema), tuple(Profile(network, length) for length in config.ema_lengths)
    if config.precision == "fp8":  # after the averages' copies, which are sampled from
        use_fp8(network)
    recompute(network, config.recompute)
    fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    for each in (network, *(average.network for average in (ema, *profiles))):
        place(each, fixed, config, ranks, choice)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, config.lr, (0.9, config.beta2), weight_decay=config.weight_decay, fused=True)
    compiled = ranks.device.type == "cuda" if config.compile is None else config.compile
    process, calls = build_process(config), called(network, ranks, compiled)
    with autocast(ranks.device, config.precision):
        settle(calls, partial(blanks, card, ranks, encoder))
    captions = Captions(source.classes, "", encoder) if encoder else None
    loss, terms = build_loss(config, Captioned(calls, captions) if captions else calls, process)
    times = LossAware(int(process.end)) if config.time_sampling == "loss-aware" else None
    state = State(network, optimizer, ema, Window(("loss", "grad_norm", *terms), ranks.device),
                  Guard(config.spike, ranks.device), times, profiles)
    start = checkpoint.load(last, state, ranks) if last else 0
    return Job(run, card, ranks, source, autoencoder, state, calls, process, loss, start,
               total_steps(config, len(source.labels)), choice, captions)


def blanks(card: Card, ranks: Ranks, encoder: TextEncoder | None) -> tuple[Tensor, ...]:
    """What the network takes in a micro-batch, as zeros."""
    micro = card.config.global_batch_size // (ranks.world * card.config.grad_accum)
    inputs = blank_inputs(card.network.model, micro, encoder.length if encoder else 0, **card.network.sizes)
    return tuple(part.to(ranks.device) for part in inputs)


def place(network: nn.Module, fixed: Set[str], config: TrainConfig, ranks: Ranks, choice: Choice) -> None:
    """Bring a network, or this rank's share of it, to its device, with the attention that is quicker there."""
    choose_attention(network, ranks.device, config.precision)
    if choice.parallel == "fsdp" and ranks.world > 1:
        shard(network, fixed, ranks, config.precision)
    else:
        network.to(ranks.device)
