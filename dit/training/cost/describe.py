"""A training in words, row by row: network, cost, data and schedule."""

from dit.build import count_multiply_adds
from dit.config import OPTIMIZERS, TrainConfig
from dit.config.levers import describe_levers
from dit.distributed.ranks import Ranks
from dit.models.registry import count_parameters, describe_network, is_classifier
from dit.runs.card import NetworkSpec
from dit.training.cost.ddp_or_fsdp import describe_memory, frozen_bytes, memory
from dit.training.cost.describe_data import describe_data, describe_latents
from dit.training.cost.expected import describe_disk, describe_time, questions, restored_psnr
from dit.training.cost.flops import training_flops
from dit.training.ema import snapshot_every
from dit.training.inputs import RunInputs
from dit.training.lr_schedule import note_warmup, warmup_steps
from dit.training.session import TrainingPlan


def describe(inputs: RunInputs, plan: TrainingPlan, ranks: Ranks) -> str:
    """Return the table that --dry-run prints: what a start prints, and what it costs."""
    card = inputs.card
    config, spec = card.config, card.network
    network = inputs.meta_network
    tokens = inputs.text_tokens
    work = training_flops(spec, config, tokens)
    macs = count_multiply_adds(spec, tokens)
    need = memory(card, ranks, plan.parallel.parallel, tokens)
    frozen = frozen_bytes(inputs.autoencoder, inputs.encoder, inputs.vision)
    devices = f"{ranks.world} x {ranks.device.type}"

    rows, remarks = start_rows(inputs, plan, ranks)
    rows |= {
        # two FLOPs a multiply-add; the backward pass costs twice the forward pass
        "compute": f"{macs / 1e9:.3g} G multiply-adds an image forward, "
        f"{work / 1e9:.3g} GFLOP to train on it{describe_alignment(inputs)}",
        "memory": describe_memory(need, frozen),
        "diffusion": f"{config.process}{describe_shift(config)}, {describe_task(config, spec)}",
        "averages": describe_snapshots(config, plan.steps, count_parameters(network)),
        "hardware": f"{devices}, {plan.precision}, {plan.micro_batch} images a rank at once",
    }
    lines = [*rows.items(), *remarks]
    return "\n".join(f"{name:<10} {text}" for name, text in lines if text)


def start_rows(
    inputs: RunInputs, plan: TrainingPlan, ranks: Ranks
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return what a run prints before its first step, by name, and notes and warnings."""
    source, spec, network = inputs.source, inputs.card.network, inputs.meta_network
    config = inputs.card.config
    psnr = restored_psnr(inputs)
    time = f"{describe_time(inputs, plan, ranks)}, on {ranks.world} x {ranks.device.type}"
    if plan.compiled:
        time += "; compiling takes a minute or two more, the first time"
    rows = {
        "preset": describe_preset(config),
        "data": describe_data(config, source, spec),
        "latents": describe_latents(config, source, inputs.autoencoder, psnr),
        "model": f"{spec.model}, {count_parameters(network):,} parameters; "
        f"{describe_network(network)}",
        "levers": describe_levers(config),
        "schedule": describe_schedule(config, plan.steps, len(source.labels)),
        "time": time,
        "disk": describe_disk(inputs, plan),
        "parallel": str(plan.parallel) if ranks.world > 1 else "",
    }
    remarks = [("note", text) for text in note_warmup(config, plan.steps)]
    remarks += [("warning", text) for text in questions(inputs, plan.steps, psnr)]
    return rows, remarks


def describe_preset(config: TrainConfig) -> str:
    """Return the preset, and for images that it was chosen for them."""
    chosen = "; it suits images, --preset names another"
    return config.preset + (chosen if config.preset == "photos" else "")


def describe_alignment(inputs: RunInputs) -> str:
    """Return what --align costs in words: a pass of the teacher, and the projector."""
    config = inputs.card.config
    if config.align is None:
        return ""
    return (
        f", and {inputs.alignment / 1e9:.3g} for --align in the first {config.align_until:.0%} of "
        "the steps"
    )


def describe_shift(config: TrainConfig) -> str:
    """Return the shift of a flow's times, if they are shifted."""
    if config.process != "flow" or config.time_shift == 1:
        return ""
    return f", times shifted by {config.time_shift:.3g}"


def describe_task(config: TrainConfig, spec: NetworkSpec) -> str:
    if is_classifier(spec.model):
        return "predicts the class of noised latents"
    variance = " and the variance" if spec.learn_sigma else ""
    dropout = f", label dropout {config.label_dropout:g}" if spec.num_classes else ""
    quantity: str = config.objective
    if spec.interval:
        guidance = f" of scale {config.meanflow_scale:g}" if config.meanflow_scale != 1 else ""
        quantity = f"average velocities{guidance} ({config.meanflow_form} MeanFlow)"
    return f"predicts {quantity}{variance}{dropout}"


def describe_schedule(config: TrainConfig, steps: int, size: int) -> str:
    epochs = steps * config.global_batch_size / size
    warmup = warmup_steps(config, steps)
    rise = f" after {warmup} steps" if warmup else ""
    decay = ""
    if config.cooldown:
        decay = f", then linearly to 0 over the last {config.cooldown * steps:.0f}"
    return (
        f"{steps:,} steps of {config.global_batch_size} images ({epochs:,.1f} epochs); "
        f"{OPTIMIZERS[config.optimizer]}, lr {config.lr:g}{rise}{decay}; EMA {config.ema:g}"
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
