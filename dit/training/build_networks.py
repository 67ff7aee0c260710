"""The network to train and its averages, on their devices, for DDP, FSDP2 and the compiler."""

from collections.abc import Callable, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dit.build import build_network
from dit.distributed.activation_checkpoint import activation_checkpointing
from dit.distributed.compiling import compile_sizes
from dit.distributed.device import autocast, choose_attention
from dit.distributed.float8 import convert_to_float8
from dit.distributed.parallel import shard, warm_up_ddp, wrap_ddp_and_compile
from dit.distributed.ranks import Ranks
from dit.models.registry import zero_inputs
from dit.models.tangent import differentiate, load_rules, tangent
from dit.runs.card import ModelCard
from dit.training.ema import EMA, PowerEMA
from dit.training.finetune import initialise
from dit.training.session import TrainingPlan


def build_networks(
    card: ModelCard, plan: TrainingPlan, ranks: Ranks
) -> tuple[nn.Module, EMA, tuple[PowerEMA, ...]]:
    """Return the network, fresh or with the weights of --init, and the averages that follow it."""
    config = card.config
    # Initial weights alone come from torch's global generator.
    torch.manual_seed(config.seed)
    network = build_network(card.network)
    if config.init and not plan.checkpoint:
        initialise(network, card, config.init)

    ema = EMA(network, config.ema)
    power_emas = tuple(PowerEMA(network, length) for length in config.ema_lengths)

    # After the averages copied the network: they are sampled from, without float8 layers.
    if plan.precision == "fp8":
        convert_to_float8(network)
    activation_checkpointing(network, config.recompute)

    # Position tables are small and never trained: every rank keeps all of them.
    fixed = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    for each in (network, ema.network, *(average.network for average in power_emas)):
        shard_or_move(each, fixed, plan, ranks)
    return network, ema, power_emas


def shard_or_move(network: nn.Module, fixed: Set[str], plan: TrainingPlan, ranks: Ranks) -> None:
    """Bring a network, or this rank's share of it, to its device, with the fastest attention."""
    choose_attention(network, ranks.device, plan.precision)
    if plan.parallel.parallel == "fsdp" and ranks.world > 1:
        shard(network, fixed, ranks, plan.precision)
    else:
        network.to(ranks.device)


def wrap(
    network: nn.Module, card: ModelCard, plan: TrainingPlan, ranks: Ranks, text_tokens: int
) -> nn.Module:
    """Return the network as the loop calls it."""
    wrapped = wrap_ddp_and_compile(network, ranks, plan.compiled)
    with autocast(ranks.device, plan.precision):
        warm_up_ddp(wrapped, partial(_blank_micro_batch, card, plan, ranks, text_tokens))
    return wrapped


def compile_tangent(network: nn.Module, compiled: bool) -> Callable[..., Tensor]:
    """Return the derivative of the network itself, without DDP: no gradient is averaged."""
    load_rules()
    # FSDP2's hooks stay outside of what is compiled
    if compiled and not isinstance(network, FSDPModule):
        return partial(tangent, network, derivative=compile_sizes(differentiate))
    return partial(tangent, network)


def _blank_micro_batch(
    card: ModelCard, plan: TrainingPlan, ranks: Ranks, text_tokens: int
) -> tuple[Any, ...]:
    spec, config = card.network, card.config
    inputs = zero_inputs(
        spec.model,
        plan.micro_batch,
        text_tokens,
        config.route,
        parts=config.reads_parts,
        **spec.sizes,
    )
    return tuple(part.to(ranks.device) if isinstance(part, Tensor) else part for part in inputs)
