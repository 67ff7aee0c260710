"""Refuse a training that surely does not fit into memory, before anything of it is built."""

import math
from dataclasses import replace

import torch
from torch import nn

from dit.build import build_network
from dit.distributed.device import describe_free, free_memory
from dit.distributed.ranks import Ranks
from dit.distributed.shortage import less_memory, next_grad_accum
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.card import NetworkSpec
from dit.training.cost.ddp_or_fsdp import gib, memory
from dit.training.cost.memory import held_bytes, rough_activations
from dit.training.inputs import RunInputs
from dit.training.session import TrainingPlan

SURE = 0.9  # share of the estimate that must exceed the memory, as estimates are not exact
WORTH_COUNTING = 0.25  # share of the memory from which a rough bound is counted exactly


def require_memory(inputs: RunInputs, plan: TrainingPlan, ranks: Ranks) -> None:
    """Refuse what does not fit on the rank with the least memory; all ranks call it."""
    free = torch.tensor(float(free_memory(ranks.device)), dtype=torch.float64)
    limit = ranks.min(free.to(ranks.device)).item()
    ranks.on_main(lambda: _require(inputs, plan, ranks, limit))


def _require(inputs: RunInputs, plan: TrainingPlan, ranks: Ranks, limit: float) -> None:
    card = inputs.card
    world = ranks.world if plan.parallel.parallel == "fsdp" else 1
    network = inputs.meta_network
    averages = 1 + len(card.config.ema_lengths)
    expected = f"at most the {gib(limit)} GiB {describe_free(ranks.device)}"

    held = held_bytes(network, averages, world)
    if held > limit:
        raise UserError(
            f"--model {card.config.model} needs {gib(held)} GiB for weights, gradients, AdamW's "
            "moments and EMA",
            expected,
            _smaller_model(card.network, averages, world, limit),
        )

    # the exact count takes seconds, so it is made only where it matters
    if rough_activations(network, card.network, plan.micro_batch) < WORTH_COUNTING * limit:
        return
    tokens = inputs.text_tokens
    need = memory(card, ranks, plan.parallel.parallel, tokens).total
    if SURE * need <= limit:
        return
    one = replace(card.config, global_batch_size=ranks.world, grad_accum=1)
    least = memory(replace(card, config=one), ranks, plan.parallel.parallel, tokens).total
    raise UserError(
        f"a step with {plan.micro_batch} images at once needs about {gib(need)} GiB",
        expected,
        _smaller_step(inputs, plan, ranks.world, least, need, limit),
    )


def _without_data(spec: NetworkSpec) -> nn.Module:
    with torch.device("meta"):
        return build_network(spec)


def _smaller_model(spec: NetworkSpec, averages: int, world: int, limit: float) -> str:
    """Return what to type instead: the largest network of the family that fits, if any does."""
    ranks = "share it among more ranks with torchrun and --parallel fsdp"
    family, _, size_and_patch = spec.model.partition("-")
    size, _, patch = size_and_patch.partition("/")
    sizes = list(SIZES)
    if size not in sizes:
        return f"pass a smaller --model, or {ranks}"

    for smaller in reversed(sizes[: sizes.index(size)]):
        name = f"{family}-{smaller}/{patch}"
        network = _without_data(replace(spec, model=name))
        if held_bytes(network, averages, world) <= SURE * limit:
            return f"pass --model {name}, whose weights fit, or {ranks}"
    return f"use a machine with more memory, or {ranks}"


def _smaller_step(
    inputs: RunInputs, plan: TrainingPlan, world: int, least: int, need: int, limit: float
) -> str:
    """Return what to type instead: so many micro-batches that each fits, if one image does."""
    config = inputs.card.config
    # memory grows in proportion to the images
    per_image = (need - least) / max(1, plan.micro_batch - 1)
    most = 1 + math.floor((SURE * limit - least) / max(1, per_image))
    if most < 1:
        return less_memory(replace(config, global_batch_size=world), world)

    share = config.global_batch_size // world
    accum = next_grad_accum(config, world, math.ceil(share / most))
    if "Classifier-" in config.model or accum is None:
        return f"pass --batch-size {most * world}"
    batch = share // accum
    return f"pass --grad-accum {accum} for {batch} images at once ({most} would fit)"
