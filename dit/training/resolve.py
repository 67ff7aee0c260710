"""Resolve flags, data and machine into one plan: run, steps, precision, parallelism, compiling."""

from dit.distributed.device import compute_precision
from dit.distributed.ranks import Ranks
from dit.training.cost.ddp_or_fsdp import choose
from dit.training.inputs import RunInputs
from dit.training.lr_schedule import total_steps
from dit.training.run_directory import open_run
from dit.training.session import TrainingPlan


def resolve(inputs: RunInputs, ranks: Ranks) -> TrainingPlan:
    """Return the plan of a run; all ranks call it, nothing is written."""
    card, images = inputs.card, len(inputs.source.labels)
    config = card.config
    run, checkpoint = open_run(card, images, ranks)
    # Compiling takes longer than it saves in short runs on a CPU.
    compiled = ranks.device.type == "cuda" if config.compile is None else config.compile
    return TrainingPlan(
        run=run,
        checkpoint=checkpoint,
        steps=total_steps(config, images),
        micro_batch=config.global_batch_size // (ranks.world * config.grad_accum),
        parallel=choose(card, inputs.autoencoder, inputs.encoder, ranks, inputs.vision),
        precision=compute_precision(ranks.device, config.precision),
        compiled=compiled,
    )
