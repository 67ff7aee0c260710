"""Start from the weights of another run (--init)."""

from pathlib import Path

from torch import Tensor, nn

from dit.build import load_weights
from dit.errors import UserError
from dit.runs.card import ModelCard, same_autoencoder
from dit.runs.checkpoint_files import find_weights
from dit.runs.weights import read_header, read_weights

INNER_HEAD = "inner_final_layer."  # before the names of its tensors
PARTS = {
    "model": "model",
    "block": "blocks",
    "input_size": "latents of",
    "in_channels": "latent channels",
    "learn_sigma": "learned variance",
    "text_width": "width of text",
    "unet_attention": "attention at",
    "time_scale": "times scaled by",
    "time_endpoint": "times embedded as diffusers does",
    "mlp_norm_eps": "epsilon of the MLP's norm",
}
"""What two networks must share for one to start from the other, beside condition and classes."""

VELOCITIES = ("v", "meanflow")
"""Objectives of which the second may start from the first: at length 0 they are the same."""


def find_origin(card: ModelCard, weights: Path) -> Path:
    """Return the file of another run's weights, once they fit the network that starts from them."""
    file = find_weights(weights)
    origin, _ = read_header(file)
    trained_with = f"--init {weights} was trained with"
    theirs = {**vars(origin.config), **vars(origin.network)}
    ours = {**vars(card.config), **vars(card.network)}

    for name in ("conditioning", "process", "objective", "latent_norm"):
        flag = f"--{name.replace('_', '-')}"
        old, new = theirs[name], ours[name]
        if old != new and (old, new) != VELOCITIES:
            raise UserError(
                f"{trained_with} {flag} {old}, not {new}",
                "the same for both",
                f"pass {flag} {old}",
            )

    if theirs["inner_head"] and not ours["inner_head"]:
        raise UserError(
            f"{trained_with} --inner-head", "the same network for both", "pass --inner-head"
        )

    different = []
    for name, words in PARTS.items():
        old, new = theirs[name], ours[name]
        if old != new:
            different.append(f"{words} {_in_words(old)}, not {_in_words(new)}")
    if different:
        raise UserError(
            f"--init {weights} has a network of {'; '.join(different)}",
            "the same network for both",
            "pass the flags that the weights were trained with (`dit info` shows them)",
        )

    same = {
        "vae": same_autoencoder(origin, card),
        "text_encoder": origin.text_encoder_sha256 == card.text_encoder_sha256,
    }
    for name, is_same in same.items():
        if not is_same:
            flag = f"--{name.replace('_', '-')}"
            old, new = theirs[name] or "digits", ours[name] or "digits"
            raise UserError(
                f"{trained_with} {flag} {old}, which is not {flag} {new}",
                "the same for both",
                "pass the one that the weights were trained with",
            )
    return file


def _in_words(value: object) -> str:
    """Return the setting of a network in words."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "no side"
    if value is None:
        return "the usual"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def initialise(network: nn.Module, card: ModelCard, weights: Path) -> None:
    """Load another run's EMA; what it has not stays fresh: classes, inner head, lengths."""
    origin = read_weights(find_origin(card, weights))
    tensors = origin.state_dict
    if card.network.interval and not origin.card.network.interval:
        tensors = tensors | fresh_lengths(network)
    if origin.card.network.num_classes != card.network.num_classes:
        tensors = tensors | fresh_classes(network, tensors)
    if card.network.inner_head and not origin.card.network.inner_head:
        own = network.state_dict()
        tensors = tensors | {name: own[name] for name in own if name.startswith(INNER_HEAD)}
    load_weights(network, tensors, origin.path)


def fresh_lengths(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's own embedding of lengths, which starts at zero."""
    own = network.state_dict()
    return {name: own[name].clone() for name in own if name.startswith("t_embedder.length_mlp.")}


def fresh_classes(network: nn.Module, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's own label table, with the trained null label, or its own head."""
    # The null label was trained on images of all classes, so it fits any others.
    table = "y_embedder.embedding_table.weight"
    names = (table, "head.weight", "head.bias")
    own = network.state_dict()
    fresh = {name: own[name].clone() for name in names if name in own}
    if table in fresh:
        fresh[table][-1] = trained[table][-1]
    return fresh
