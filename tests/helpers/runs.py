"""Tiny trainings on one rank."""

import dataclasses
from pathlib import Path

from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks

TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=16,
    steps=8,
    warmup=2,
    cooldown=0,
    sample_every=0,
    ckpt_every=0,
    log_every=4,
    precision="fp32",
)
TINIEST = dict(depth=1, hidden_size=16, num_heads=1)  # a size of DiT


def train_run(config: TrainConfig, **changes: object) -> Path:
    """Train; return the run's directory."""
    run = train(dataclasses.replace(config, **changes), Ranks())
    assert run
    return run
