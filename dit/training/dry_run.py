"""What a configuration would train, without training it."""

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from dit.build import build_network
from dit.config import TrainConfig
from dit.data.images import tell_size
from dit.hardware import Ranks, autocast, choose_attention, uses_bf16
from dit.latents.autoencoder import Autoencoder
from dit.latents.store import Latents
from dit.models.create import blank_inputs, is_classifier, multiply_adds, parameters, structure
from dit.runs import Card, NetworkSpec
from dit.text import TextEncoder
from dit.training.ema import snapshot_every
from dit.training.schedule import total_steps


def describe(card: Card, source: Latents, autoencoder: Autoencoder, ranks: Ranks, encoder: TextEncoder | None = None
             ) -> str:
    """A table of network, cost, data and schedule."""
    config, spec = card.config, card.network
    with torch.device("meta"):
        network = build_network(spec)
    tokens = encoder.length if encoder else 0
    macs = multiply_adds(spec.model, tokens, **spec.sizes)
    steps, batch = total_steps(config, len(source.labels)), config.global_batch_size
    bf16 = uses_bf16(ranks.device, config.precision)
    micro = batch // (ranks.world * config.grad_accum)
    memory = weights_bytes(parameters(network), averages=1 + len(config.ema_lengths))
    memory += 4 * parameters(encoder.network) if encoder else 0
    memory += activation_bytes(spec, micro, ranks.device, config.precision, tokens)
    flips = "on" if source.flips else "off"
    shape = "x".join(map(str, source.shape))
    rows = {
        "model": f"{spec.model}, {parameters(network):,} parameters; {structure(network)}",
        "compute": f"{macs / 1e9:.3g} G multiply-adds an image forward, {6 * macs / 1e9:.3g} GFLOP to train on it",
        "memory": f"about {memory / 2**30:.2f} GiB a rank for weights, gradients, AdamW, EMA and activations"
                  f"{', and the text encoder' if encoder else ''}",
        "data": f"{config.data}: {len(source.labels):,} images, {classes(spec)}, flips {flips}",
        "latents": f"{shape} from {tell_size(config.image_size)}, {autoencoder.name} (factor {autoencoder.factor})",
        "diffusion": f"{config.process}, {task(config, spec)}",
        "schedule": schedule(config, steps, len(source.labels)),
        **({"averages": snapshots(config, steps, parameters(network))} if config.ema_lengths else {}),
        "hardware": f"{ranks.world} x {ranks.device.type}, {'bf16' if bf16 else 'fp32'}, {micro} images a rank at once",
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
    cool = f", then linearly to 0 over the last {config.cooldown * steps:.0f}" if config.cooldown else ""
    return (f"{steps} steps of {config.global_batch_size} images ({epochs:.1f} epochs); AdamW, lr {config.lr:g} after "
            f"{config.warmup} steps{cool}; EMA {config.ema:g}")


def snapshots(config: TrainConfig, steps: int, count: int) -> str:
    """What --ema-lengths leaves on the disk."""
    every = snapshot_every(config, steps)
    files = -(-steps // every) * len(config.ema_lengths)
    lengths = " ".join(f"{length:g}" for length in config.ema_lengths)
    return f"lengths {lengths}; every {every:,} steps a snapshot of each, {4 * count * files / 1e9:.3g} GB in all"


def weights_bytes(count: int, averages: int = 1) -> int:
    """Float32 weights, gradients, two moments of AdamW, the EMA and whatever else follows the weights."""
    return (4 + averages) * 4 * count


def activation_bytes(spec: NetworkSpec, batch: int, device: torch.device, precision: str, text_tokens: int = 0) -> int:
    """What autograd keeps of one forward pass, counted on tensors without data, each storage once."""
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(), device:
        network, inputs = build_network(spec), blank_inputs(spec.model, batch, text_tokens, **spec.sizes)
        choose_attention(network, device, precision)
        with saved_tensors_hooks(count, lambda tensor: tensor), autocast(device, precision):
            out = network(*inputs)  # whose graph keeps the storages, so that no two have the same address
        own = {p.untyped_storage()._cdata for p in network.parameters()}
    del out
    return sum(size for address, size in kept.items() if address not in own)
