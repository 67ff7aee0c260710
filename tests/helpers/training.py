"""Small trainings, step by step or as a run, and what is compared of them."""

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dit.build import build_vision_encoder
from dit.commands.train import train
from dit.config import TrainConfig
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.latents.load import build_source
from dit.latents.store import Latents
from dit.runs.logs import read_metrics
from dit.training.batches import read_batch
from dit.training.build_card import build_card
from dit.training.inputs import RunInputs
from dit.training.prepare import prepare
from dit.training.resolve import resolve
from dit.training.session import TrainingSession
from dit.training.trainer import take_step

TINY = TrainConfig(
    model="DiT-Ti/4",
    vae="identity",
    image_size=8,
    global_batch_size=16,
    steps=6,
    warmup=2,
    sample_every=0,
    ckpt_every=0,
    log_every=2,
    precision="fp32",
)


def a_session(
    folder: Path,
    config: TrainConfig = TINY,
    ranks: Ranks | None = None,
    source: Latents | None = None,
    **changes: object,
) -> TrainingSession:
    """Return a training that is about to start in FOLDER/session."""
    config = dataclasses.replace(config, out=folder / "session", **changes)
    autoencoder = load_autoencoder(config.vae)
    source = source or build_source(config, autoencoder)
    card = build_card(config, source)
    vision = build_vision_encoder(card.config, card.network, torch.device("cpu"))
    return prepared(RunInputs(card, source, autoencoder, vision=vision), ranks)


def prepared(inputs: RunInputs, ranks: Ranks | None = None) -> TrainingSession:
    """Return a training on these inputs that is about to start."""
    ranks = ranks or Ranks()
    return prepare(inputs, resolve(inputs, ranks), ranks)


def do_step(session: TrainingSession, step: int = 1) -> TrainingSession:
    """Take a step of a session, on the batch that the trainer would read for it."""
    take_step(session, read_batch(session.stream, step - 1), step)
    return session


def run(out: Path, config: TrainConfig = TINY, **changes: object) -> Path:
    """Train a run in this process, as the command does."""
    return train(dataclasses.replace(config, out=out, **changes), Ranks())


def resume(out: Path, config: TrainConfig = TINY, **changes: object) -> Path:
    """Continue a run, or start it, as `--resume auto` does."""
    return run(out, config, resume="auto", **changes)


def flat(session: TrainingSession, ema: bool = False) -> Tensor:
    """Return all weights of the trained network, or of its EMA, in one vector."""
    network = session.state.ema.network if ema else session.state.network
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def first_moment(session: TrainingSession) -> Tensor:
    """Return AdamW's mean of the gradient: (1 - beta1) times the gradient after one step."""
    states = session.state.optimizer.state.values()
    return torch.cat([values["exp_avg"].flatten() for values in states])


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, named FOLDER:TENSOR."""
    found = {}
    for file in sorted(checkpoint.rglob("*.safetensors")):
        found |= {f"{file.parent.name}:{name}": v for name, v in load_file(file).items()}
    return found


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not the same, bit for bit."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def logged(run: Path, *names: str) -> list[tuple]:
    """Return these numbers of each line of the log that has the first of them."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if names[0] in line]
    return [tuple(line[name] for name in names) for line in lines]
