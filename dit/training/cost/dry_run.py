"""What a configuration would train, without training it."""

from dataclasses import asdict

import torch

from dit.build import build_network
from dit.config import TrainConfig
from dit.distributed.device import compute_precision
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import TextEncoder
from dit.latents.store import Latents
from dit.models.registry import is_classifier, multiply_adds, parameters, structure
from dit.runs.card import ModelCard, NetworkSpec
from dit.training.cost.ddp_or_fsdp import Choice, frozen_bytes, gib, memory
from dit.training.cost.memory import Memory
from dit.training.ema import snapshot_every
from dit.training.lr_schedule import total_steps
from dit.utils.image_size import describe_size

NAMES = {
    "weights": "weights",
    "averages": "EMA",
    "optimizer": "AdamW",
    "gradients": "gradients",
    "copies": "weights in bf16",
    "activations": "activations",
    "temporaries": "backward pass",
    "exchange": "exchange between ranks",
}
"""Parts of memory in words."""


def describe(
    card: ModelCard,
    source: Latents,
    autoencoder: Autoencoder,
    ranks: Ranks,
    choice: Choice,
    encoder: TextEncoder | None = None,
) -> str:
    """A table of network, cost, data and schedule."""
    config, spec = card.config, card.network
    with torch.device("meta"):
        network = build_network(spec)
    tokens = encoder.length if encoder else 0
    macs = multiply_adds(spec.model, tokens, **spec.sizes)
    frozen = frozen_bytes(autoencoder, encoder)
    steps, batch = total_steps(config, len(source.labels)), config.global_batch_size
    computes = compute_precision(ranks.device, config.precision)
    micro = batch // (ranks.world * config.grad_accum)
    flips = "on" if source.flips else "off"
    shape = "x".join(map(str, source.shape))
    rows = {
        "model": f"{spec.model}, {parameters(network):,} parameters; {structure(network)}",
        "compute": f"{macs / 1e9:.3g} G multiply-adds an image forward, {6 * macs / 1e9:.3g} GFLOP to train on it",
        "memory": budget(memory(card, ranks, choice.parallel, tokens), frozen),
        **({"parallel": str(choice)} if ranks.world > 1 else {}),
        "data": f"{config.data}: {len(source.labels):,} images, {classes(spec)}, flips {flips}",
        "latents": f"{shape} from {describe_size(config.image_size)}, {autoencoder.name} (factor {autoencoder.factor})",
        "diffusion": f"{config.process}, {task(config, spec)}",
        "schedule": schedule(config, steps, len(source.labels)),
        **(
            {"averages": snapshots(config, steps, parameters(network))}
            if config.ema_lengths
            else {}
        ),
        "hardware": f"{ranks.world} x {ranks.device.type}, {computes}, {micro} images a rank at once",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in rows.items())


def classes(spec: NetworkSpec) -> str:
    """How many things there are to ask for."""
    if not spec.num_classes:
        return "unconditional"
    return f"{spec.num_classes:,} {'captions' if spec.text_width else 'classes'}"


def task(config: TrainConfig, spec: NetworkSpec) -> str:
    """What the network learns."""
    if is_classifier(spec.model):
        return "tells the class of noised latents"
    variance = " and the variance" if spec.learn_sigma else ""
    dropout = f", label dropout {config.label_dropout:g}" if spec.num_classes else ""
    return f"predicts {config.objective}{variance}{dropout}"


def schedule(config: TrainConfig, steps: int, size: int) -> str:
    """Steps and learning rate in words."""
    epochs = steps * config.global_batch_size / size
    cool = (
        f", then linearly to 0 over the last {config.cooldown * steps:.0f}"
        if config.cooldown
        else ""
    )
    return (
        f"{steps} steps of {config.global_batch_size} images ({epochs:.1f} epochs); AdamW, lr {config.lr:g} after "
        f"{config.warmup} steps{cool}; EMA {config.ema:g}"
    )


def snapshots(config: TrainConfig, steps: int, count: int) -> str:
    """What --ema-lengths leaves on the disk."""
    every = snapshot_every(config, steps)
    files = -(-steps // every) * len(config.ema_lengths)
    lengths = " ".join(f"{length:g}" for length in config.ema_lengths)
    return f"lengths {lengths}; every {every:,} steps a snapshot of each, {4 * count * files / 1e9:.3g} GB in all"


def budget(need: Memory, frozen: int) -> str:
    """Memory in words, with bytes of networks that are not trained."""
    named = {NAMES[name]: size for name, size in asdict(need).items()} | {"frozen networks": frozen}
    told = [f"{name} {gib(size)}" for name, size in named.items() if size >= 2**30 / 200]
    return f"about {gib(need.total + frozen)} GiB a rank at the peak of a step: {', '.join(told)}"
