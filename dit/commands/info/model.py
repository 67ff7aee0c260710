"""A network and its training in words, from the model card."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dit.build import build_network
from dit.config import OPTIMIZERS
from dit.config.levers import describe_levers
from dit.data.counts import count_of
from dit.models.registry import count_parameters, describe_network, is_classifier
from dit.runs.card import RELEASE_DATA, ModelCard, NetworkSpec
from dit.runs.formats.foreign import NAMES, dit_tensors, recognise
from dit.runs.formats.foreign_checkpoint import read_checkpoint
from dit.utils.image_size import describe_size, sides

Rows = list[tuple[str, str]]
MOST_NAMES = 20  # of classes or captions


def network_rows(spec: NetworkSpec) -> Rows:
    """Return what a network is."""
    with torch.device("meta"):
        network = build_network(spec)
    height, width = sides(spec.input_size)
    order = " (channels, height, width)" if height != width else ""
    rows = [
        ("model", spec.model),
        ("network", describe_network(network)),
        ("parameters", f"{count_parameters(network):,}"),
        ("latents", f"{spec.in_channels} x {height} x {width}{order}"),
        ("classes", str(spec.num_classes or "none (unconditional)")),
        ("learned variance", "yes" if spec.learn_sigma else "no"),
    ]
    return [row for row in rows if row[0] != "classes" or not spec.text_width]


def foreign_rows(file: Path) -> Rows:
    """Return what a network of another program is, as far as its file tells."""
    checkpoint = read_checkpoint(file)
    state_dict, spec = dit_tensors(checkpoint)
    found, because, _ = recognise(checkpoint)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state_dict.values()})
    rows = [
        ("format", f"{NAMES[found] if found else 'unknown'}: {because}"),
        ("taken", checkpoint.origin),
        *network_rows(spec),
        ("label table", f"{spec.num_classes + 1:,} rows, with the null class if there is one"),
        ("stored as", ", ".join(dtypes)),
    ]
    return [row for row in rows if row[1]]


def card_rows(card: ModelCard) -> Rows:
    """Return what a network is and how it was trained."""
    config = card.config
    rows = [
        *network_rows(card.network),
        ("images", describe_size(config.image_size)),
        ("autoencoder", config.vae),
        ("latents scaled by", _normalisation(card)),
        ("data", config.data),
    ]
    if card.text_encoder_sha256:
        rows.append(("text encoder", config.text_encoder or "digits"))
    if not card.unconditional:
        rows += _label_rows(card)
    optimizer = f"{OPTIMIZERS[config.optimizer]}, lr {config.lr:g}"
    average = ("EMA decay", f"{config.ema:g}") if card.ema_length is None else ("EMA", card.average)
    levers = describe_levers(config)
    return [
        *rows,
        ("process", _process(card)),
        ("objective", _objective(card)),
        *([("levers", levers)] if levers else []),
        ("optimizer", f"{optimizer}, batch {config.global_batch_size}"),
        (average[0], str(average[1])),
        ("precision", config.precision),
        ("seed", str(config.seed)),
    ]


def _label_rows(card: ModelCard) -> Rows:
    dropout = f"{card.config.label_dropout:g}"
    if card.network.text_width is None:
        names = list_classes(card.classes, card.class_counts)
        return [("class names", names), ("label dropout", dropout)]
    # a card keeps only some of many captions
    captions = listed(card.classes, card.network.num_classes)
    return [("captions", captions), ("caption dropout", dropout)]


def _normalisation(card: ModelCard) -> str:
    if card.latent_mean is None or card.latent_std is None:
        return "the autoencoder's constants"
    mean, deviation = numbers(card.latent_mean), numbers(card.latent_std)
    return f"mean {mean}, deviation {deviation}, measured on the data"


def _process(card: ModelCard) -> str:
    config = card.config
    if config.process != "flow":
        return f"DDPM, {config.process} betas"
    shift = f"shifted by {config.time_shift:g}"
    if config.data == RELEASE_DATA:
        # the card of a converted release has the shift of its samples
        return f"flow matching, {config.time_sampling} times; sampled at times {shift}"
    return f"flow matching, {config.time_sampling} times {shift}"


def _objective(card: ModelCard) -> str:
    if is_classifier(card.network.model):
        return "class of noised latents"
    variance = ", learned variance" if card.config.learn_sigma else ""
    if card.network.interval:
        return f"average velocities (MeanFlow, {card.config.meanflow_form})"
    return f"{card.config.objective} prediction{variance}"


def numbers(values: list[float]) -> str:
    """Return numbers with three digits."""
    return " ".join(f"{value:.3g}" for value in values)


def list_classes(names: Sequence[str], counts: Sequence[int] | None) -> str:
    """Return ids and names of the first classes, and the images of each where they are known."""
    words: list[str] = []
    for label, name in enumerate(names[:MOST_NAMES]):
        word = name if name == str(label) else f"{label} {name}"
        if counts is not None:
            # the unit is said once
            word += f" ({counts[label]:,})" if words else f" ({count_of(counts[label], 'image')})"
        words.append(word)
    return listed(words, len(names))


def listed(names: list[str], count: int) -> str:
    """Return the first names, and how many more of `count` there are."""
    shown = ", ".join(names[:MOST_NAMES])
    more = count - min(MOST_NAMES, len(names))
    return shown if count <= MOST_NAMES else f"{shown}, … ({more:,} more)"
