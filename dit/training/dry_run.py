"""What a configuration would train, without training it."""

import torch

from dit.build import build_network
from dit.config import TrainConfig
from dit.data.images import show_size, sides
from dit.hardware import Ranks, uses_bf16
from dit.latents.autoencoder import Autoencoder
from dit.latents.store import Latents
from dit.models.create import multiply_adds, parameters
from dit.models.dit import SIZES, split_name
from dit.runs import Card
from dit.training.schedule import total_steps


def describe(card: Card, source: Latents, autoencoder: Autoencoder, ranks: Ranks) -> str:
    """A table of network, cost, data and schedule."""
    config, spec = card.config, card.network
    with torch.device("meta"):
        network = build_network(spec)
    size, patch = split_name(spec.model)
    height, width = sides(spec.input_size)
    tokens = (height // patch) * (width // patch)
    macs = multiply_adds(spec.model, input_size=spec.input_size, in_channels=spec.in_channels,
                         num_classes=spec.num_classes, learn_sigma=spec.learn_sigma)
    steps, batch = total_steps(config, len(source.labels)), config.global_batch_size
    bf16 = uses_bf16(ranks.device, config.precision)
    micro = batch // (ranks.world * config.grad_accum)
    memory = weights_bytes(parameters(network)) + micro * activation_bytes(tokens, **SIZES[size], bf16=bf16)
    flips = "on" if source.flips else "off"
    variance = " and the variance" if spec.learn_sigma else ""
    shape = "x".join(map(str, source.shape))
    rows = {
        "model": f"{spec.model}, {parameters(network):,} parameters, {tokens} tokens of {patch} x {patch} latents",
        "compute": f"{macs / 1e9:.3g} G multiply-adds an image forward, {6 * macs / 1e9:.3g} GFLOP to train on it",
        "memory": f"about {memory / 2**30:.2f} GiB a rank for weights, gradients, AdamW, EMA and activations",
        "data": f"{config.data}: {len(source.labels):,} images, {spec.num_classes} classes, flips {flips}",
        "latents": f"{shape} from {show_size(config.image_size)} px, {autoencoder.name} (factor {autoencoder.factor})",
        "diffusion": f"{config.process}, predicts {config.objective}{variance}, label dropout {config.label_dropout:g}",
        "schedule": schedule(config, steps, len(source.labels)),
        "hardware": f"{ranks.world} x {ranks.device.type}, {'bf16' if bf16 else 'fp32'}, {micro} images a rank at once",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in rows.items())


def schedule(config: TrainConfig, steps: int, size: int) -> str:
    """Steps and learning rate in words."""
    epochs = steps * config.global_batch_size / size
    cool = f", then linearly to 0 over the last {config.cooldown * steps:.0f}" if config.cooldown else ""
    return (f"{steps} steps of {config.global_batch_size} images ({epochs:.1f} epochs); AdamW, lr {config.lr:g} after "
            f"{config.warmup} steps{cool}; EMA {config.ema:g}")


def weights_bytes(count: int) -> int:
    """Float32 weights, gradients, two moments of AdamW, and the EMA."""
    return 5 * 4 * count


def activation_bytes(tokens: int, depth: int, hidden_size: int, num_heads: int, bf16: bool) -> int:
    """Kept for the backward pass of one image: per block and feature, 4 numbers in float32 (residual stream, norms)
    and 16 as inputs of the matrix products, the activation and attention."""
    return tokens * depth * hidden_size * (4 * 4 + 16 * (2 if bf16 else 4))
