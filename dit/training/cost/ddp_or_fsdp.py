"""Whether ranks hold everything (DDP) or shares (FSDP2): what --parallel says, or what there is memory for."""

from dataclasses import dataclass

import torch
from torch import nn

from dit.distributed.device import available_memory
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import TextEncoder
from dit.models.registry import parameters
from dit.runs.card import ModelCard
from dit.training.cost.memory import RESERVE, Memory, estimate


@dataclass(frozen=True)
class Choice:
    """`ddp` or `fsdp`, and why."""

    parallel: str
    why: str

    def __str__(self) -> str:
        return f"{self.parallel}, {self.why}"


ALONE = Choice("ddp", "one process")


def choose(
    card: ModelCard, autoencoder: Autoencoder, encoder: TextEncoder | None, ranks: Ranks
) -> Choice:
    """DDP where the rank with the least memory has room for it, else FSDP2, unless --parallel says which; alike on all
    ranks."""
    asked = card.config.parallel
    if asked != "auto":
        return Choice(asked, f"as --parallel {asked} says")
    if ranks.world == 1:
        return ALONE
    least = ranks.minimum(
        torch.tensor(
            float(available_memory(ranks.device)), dtype=torch.float64, device=ranks.device
        )
    ).item()
    frozen, tokens = frozen_bytes(autoencoder, encoder), encoder.length if encoder else 0
    need = ranks.on_main(lambda: memory(card, ranks, "ddp", tokens)).total + frozen
    told = f"{gib(need)} GiB a rank of the {gib((1 - RESERVE) * least)} that training may have"
    if need <= (1 - RESERVE) * least:
        return Choice("ddp", f"for it needs {told}")
    return Choice("fsdp", f"for ddp would need {told}")


def memory(card: ModelCard, ranks: Ranks, parallel: str, text_tokens: int) -> Memory:
    """What a rank needs of memory at the peak of a step."""
    config = card.config
    batch = config.global_batch_size // (ranks.world * config.grad_accum)
    return estimate(
        card.network,
        batch,
        ranks.device,
        config.precision,
        recompute=config.recompute,
        grad_accum=config.grad_accum,
        averages=1 + len(config.ema_lengths),
        text_tokens=text_tokens,
        parallel=parallel,
        world=ranks.world,
    )


def frozen_bytes(autoencoder: Autoencoder, encoder: TextEncoder | None) -> int:
    """Weights of networks that are not trained, in float32."""
    networks: list[nn.Module | None] = [
        getattr(autoencoder.codec, "network", None),
        encoder.network if encoder else None,
    ]
    return 4 * sum(parameters(network) for network in networks if network)


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.2f}"
