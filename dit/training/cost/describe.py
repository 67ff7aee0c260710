"""A training in words, row by row: network, cost, data and schedule."""

from dataclasses import asdict

import torch
from torch import nn

from dit.build import build_network
from dit.config import OPTIMIZERS, TrainConfig
from dit.distributed.ranks import Ranks
from dit.models.registry import count_parameters, describe_network, is_classifier, multiply_adds
from dit.runs.card import ModelCard, NetworkSpec
from dit.training.cost.ddp_or_fsdp import frozen_bytes, gib, memory
from dit.training.cost.describe_data import describe_data, describe_latents
from dit.training.cost.flops import alignment_flops, training_flops
from dit.training.cost.memory import PART_NAMES, Memory
from dit.training.ema import snapshot_every
from dit.training.inputs import RunInputs
from dit.training.lr_schedule import note_warmup, warmup_steps
from dit.training.session import TrainingPlan


def describe(inputs: RunInputs, plan: TrainingPlan, ranks: Ranks) -> str:
    """Return the table that --dry-run prints."""
    card, source, autoencoder = inputs.card, inputs.source, inputs.autoencoder
    config = card.config
    spec = card.network
    # without data: a network of billions of parameters needs no memory here
    with torch.device("meta"):
        network = build_network(spec)
    tokens = inputs.encoder.length if inputs.encoder else 0
    macs = multiply_adds(spec.model, tokens, **spec.sizes)
    trained = training_flops(spec, tokens, config.route)
    need = memory(card, ranks, plan.parallel.parallel, tokens)
    devices = f"{ranks.world} x {ranks.device.type}"

    count = count_parameters(network)
    rows = {
        "model": f"{spec.model}, {count:,} parameters; {describe_network(network)}",
        # two FLOPs a multiply-add; the backward pass costs twice the forward pass
        "compute": f"{macs / 1e9:.3g} G multiply-adds an image forward, "
        f"{trained / 1e9:.3g} GFLOP to train on it{describe_alignment(network, card, tokens)}",
        "memory": describe_memory(need, frozen_bytes(autoencoder, inputs.encoder)),
        "parallel": str(plan.parallel) if ranks.world > 1 else "",
        "data": describe_data(config, source, spec),
        "latents": describe_latents(config, source, autoencoder),
        "diffusion": f"{config.process}, {describe_task(config, spec)}",
        "schedule": describe_schedule(config, plan.steps, len(source.labels)),
        "note": "; ".join(note_warmup(config, plan.steps)),
        "averages": describe_snapshots(config, plan.steps, count),
        "hardware": f"{devices}, {plan.precision}, {plan.micro_batch} images a rank at once",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in rows.items() if text)


def describe_alignment(network: nn.Module, card: ModelCard, text_tokens: int) -> str:
    """Return what --align costs in words: a pass of the teacher, and the projector."""
    config = card.config
    if config.align is None:
        return ""
    flops = alignment_flops(network, card.network, text_tokens) / 1e9
    return f", and {flops:.3g} for --align in the first {config.align_until:.0%} of the steps"


def describe_memory(need: Memory, frozen: int) -> str:
    """Return the parts that are not negligible, with the bytes of networks that are not trained."""
    sizes = {PART_NAMES[name]: size for name, size in asdict(need).items()}
    sizes["frozen networks"] = frozen
    parts = [f"{name} {gib(size)}" for name, size in sizes.items() if size >= 2**30 / 200]
    total = gib(need.total + frozen)
    return f"about {total} GiB a rank at the peak of a step: {', '.join(parts)}"


def describe_task(config: TrainConfig, spec: NetworkSpec) -> str:
    if is_classifier(spec.model):
        return "predicts the class of noised latents"
    variance = " and the variance" if spec.learn_sigma else ""
    dropout = f", label dropout {config.label_dropout:g}" if spec.num_classes else ""
    return f"predicts {config.objective}{variance}{dropout}"


def describe_schedule(config: TrainConfig, steps: int, size: int) -> str:
    epochs = steps * config.global_batch_size / size
    decay = ""
    if config.cooldown:
        decay = f", then linearly to 0 over the last {config.cooldown * steps:.0f}"
    return (
        f"{steps} steps of {config.global_batch_size} images ({epochs:.1f} epochs); "
        f"{OPTIMIZERS[config.optimizer]}, lr {config.lr:g} after {warmup_steps(config, steps)} "
        f"steps{decay}; "
        f"EMA {config.ema:g}"
    )


def describe_snapshots(config: TrainConfig, steps: int, count: int) -> str:
    """Return what --ema-lengths writes to the disk, for a network of `count` parameters."""
    if not config.ema_lengths:
        return ""
    every = snapshot_every(config, steps)
    files = -(-steps // every) * len(config.ema_lengths)
    lengths = " ".join(f"{length:g}" for length in config.ema_lengths)
    size = f"{4 * count * files / 1e9:.3g} GB in all"
    return f"lengths {lengths}; every {every:,} steps a snapshot of each, {size}"
