"""Memory of a simulated step on the CPU."""

from typing import Any

import torch

from dit.runs.card import NetworkSpec
from dit.training.cost.memory import Layout, Memory, SimulatedStep

CPU = torch.device("cpu")


def step_memory(
    spec: NetworkSpec, batch: int, layout: Layout | None = None, bf16: bool = False, **more: Any
) -> Memory:
    """Return the peak of a step; `more`: recompute, text_tokens or averages."""
    return SimulatedStep(spec, CPU, bf16, **more).memory(batch, layout or Layout())
