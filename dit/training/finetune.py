"""Start from the weights of another run (--init)."""

from pathlib import Path

from torch import Tensor, nn

from dit.build import load_weights
from dit.errors import UserError
from dit.runs.card import ModelCard, same_autoencoder
from dit.runs.checkpoints import find_weights
from dit.runs.weights import read_header, read_weights

PARTS = {
    "model": "model",
    "input_size": "latents of",
    "in_channels": "latent channels",
    "learn_sigma": "learned variance",
    "text_width": "width of text",
    "unet_attention": "attention at",
}
"""Of a network, beside its condition and classes, in words: what two must share for one to start from the other."""


def find_origin(card: ModelCard, weights: Path) -> Path:
    """The file of weights that a network starts from, which another run's is.

    Raises:
        UserError: no weights there, or of another network.
    """
    config, spec = card.config, card.network
    file = find_weights(weights)
    origin, _ = read_header(file)
    theirs = origin.network
    if theirs.conditioning != spec.conditioning:
        raise UserError(
            f"--init {weights} was trained with --conditioning {theirs.conditioning}, not "
            f"{spec.conditioning}",
            "the same for both",
            f"pass --conditioning {theirs.conditioning}",
        )
    pairs = {words: (getattr(theirs, name), getattr(spec, name)) for name, words in PARTS.items()}
    if different := [
        f"{name} {_told(old)}, not {_told(new)}" for name, (old, new) in pairs.items() if old != new
    ]:
        raise UserError(
            f"--init {weights} has a network of {'; '.join(different)}",
            "the same network for both",
            "give the flags that the weights were trained with (dit info tells them)",
        )
    for name in ("process", "objective", "latent_norm"):
        old, new = getattr(origin.config, name), getattr(config, name)
        if old != new:
            raise UserError(
                f"--init {weights} was trained with {name} {old}, not {new}",
                "the same for both",
                f"pass --{name.replace('_', '-')} {old}",
            )
    for name, same in (
        ("vae", same_autoencoder(origin, card)),
        ("text_encoder", origin.text_encoder_sha256 == card.text_encoder_sha256),
    ):
        if not same:
            flag = f"--{name.replace('_', '-')}"
            old, new = (getattr(one, name) or "digits" for one in (origin.config, config))
            raise UserError(
                f"--init {weights} was trained with {flag} {old}, which is not {flag} {new}",
                "the same for both",
                "pass the one that the weights were trained with",
            )
    return file


def initialise(network: nn.Module, card: ModelCard, weights: Path) -> None:
    """Start a network from another run's EMA; with another number of classes, what is of classes starts afresh.

    Raises:
        UserError: as `find_origin`.
    """
    found = read_weights(find_origin(card, weights))
    other = found.card.network.num_classes != card.network.num_classes
    fresh = fresh_classes(network, found.state_dict) if other else {}
    load_weights(network, {**found.state_dict, **fresh}, found.path)


def _told(value: object) -> str:
    """A part of a network in words."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "no side"
    return (
        "the usual"
        if value is None
        else str(value)
        if not isinstance(value, bool)
        else "yes"
        if value
        else "no"
    )


def fresh_classes(network: nn.Module, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's own label embeddings, but for the null label's, or its own classification head."""
    table, head = "y_embedder.embedding_table.weight", ("head.weight", "head.bias")
    own = {
        name: tensor.clone()
        for name, tensor in network.state_dict().items()
        if name in (table, *head)
    }
    if table in own:
        own[table][-1] = trained[table][-1]
    return own
