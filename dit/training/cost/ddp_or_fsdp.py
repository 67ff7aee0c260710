"""Choice between full copies on every rank (DDP) and shares (FSDP2)."""

from dataclasses import asdict, dataclass

import torch

from dit.distributed.device import available_memory, uses_bf16
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import TextEncoder, count_text_tokens
from dit.encoders.vision import VisionEncoder
from dit.models.registry import count_parameters
from dit.runs.card import ModelCard
from dit.training.cost.memory import PART_NAMES, RESERVE, Layout, Memory, simulated_step


@dataclass(frozen=True)
class Choice:
    """`ddp` or `fsdp`, and the reason."""

    parallel: str
    why: str

    def __str__(self) -> str:
        return f"{self.parallel}, {self.why}"


ALONE = Choice("ddp", "one process")


def choose(
    card: ModelCard,
    autoencoder: Autoencoder,
    encoder: TextEncoder | None,
    ranks: Ranks,
    vision: VisionEncoder | None = None,
) -> Choice:
    """Return the same choice on all ranks: unless --parallel says which, DDP where every rank has
    the memory for it, else FSDP2."""
    asked = card.config.parallel
    if asked != "auto":
        return Choice(asked, "set by --parallel")
    if ranks.world == 1:
        return ALONE

    memory_here = torch.tensor(float(available_memory(ranks.device)), dtype=torch.float64)
    # the rank with the least memory decides, so that all choose alike
    limit = (1 - RESERVE) * ranks.min(memory_here.to(ranks.device)).item()
    tokens = count_text_tokens(encoder)
    # counted once: the simulated step takes seconds
    need = ranks.on_main(lambda: memory(card, ranks, "ddp", tokens)).total
    need += frozen_bytes(autoencoder, encoder, vision)

    compared = f"{gib(need)} GiB per rank of the {gib(limit)} available to training"
    if need <= limit:
        return Choice("ddp", f"which needs {compared}")
    return Choice("fsdp", f"as ddp would need {compared}")


def memory(card: ModelCard, ranks: Ranks, parallel: str, text_tokens: int) -> Memory:
    """Return what a rank needs at the peak of a step."""
    config = card.config
    bf16 = uses_bf16(ranks.device, config.precision)
    step = simulated_step(card.network, config, ranks.device, bf16, text_tokens)
    batch = config.global_batch_size // (ranks.world * config.grad_accum)
    return step.memory(batch, Layout(parallel, ranks.world, config.grad_accum))


def frozen_bytes(
    autoencoder: Autoencoder, encoder: TextEncoder | None, vision: VisionEncoder | None = None
) -> int:
    """Return the bytes of the networks that are not trained, in float32."""
    # the codec of `identity` has no network
    first_stage = getattr(autoencoder.codec, "network", None)
    networks = [first_stage, *(each.network for each in (encoder, vision) if each)]
    return 4 * sum(count_parameters(network) for network in networks if network)


def describe_memory(need: Memory, frozen: int) -> str:
    """Return the parts that are not negligible, with the bytes of networks that are not trained."""
    sizes = {PART_NAMES[name]: size for name, size in asdict(need).items()}
    sizes["frozen networks"] = frozen
    parts = [f"{name} {gib(size)}" for name, size in sizes.items() if size >= 2**30 / 200]
    total = gib(need.total + frozen)
    return f"about {total} GiB a rank at the peak of a step: {', '.join(parts)}"


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
