"""From configuration to the objects of a run: network, process, loss, data, card."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dit.config import TrainConfig
from dit.diffusion import classifier
from dit.diffusion.classifier import NoisyClassifier, classifier_loss
from dit.diffusion.objective import LossFunction, diffusion_loss, loss_terms, variational_loss
from dit.diffusion.process import DDPM, Denoiser, Flow, Process
from dit.encoders.autoencoder import Autoencoder
from dit.encoders.text import TextEncoder, load_text_encoder
from dit.errors import UserError
from dit.latents.store import Latents
from dit.models.registry import create_model, is_classifier, side_multiple
from dit.runs.card import Card, NetworkSpec, named_otherwise, same_autoencoder
from dit.runs.checkpoints import find_weights
from dit.runs.weights import read_header, read_weights
from dit.utils.hub import lasting
from dit.utils.image_size import Size, sides, size_flag, size_of

PARTS = {"model": "model", "input_size": "latents of", "in_channels": "latent channels",
         "learn_sigma": "learned variance", "text_width": "width of text", "unet_attention": "attention at"}
"""Of a network, beside its condition and classes, in words: what two must share for one to start from the other."""
MOST_CAPTIONS = 10_000  # that a run remembers of its data


def build_process(config: TrainConfig) -> Process:
    """The noise process of a run."""
    if config.process == "flow":
        return Flow(config.time_sampling, config.time_shift)
    return DDPM(config.process)


def build_network(spec: NetworkSpec) -> nn.Module:
    """A fresh network."""
    return create_model(spec.model, **spec.sizes)


def find_origin(card: Card, weights: Path) -> Path:
    """The file of weights that a network starts from, which another run's is.

    Raises:
        UserError: no weights there, or of another network.
    """
    config, spec = card.config, card.network
    file = find_weights(weights)
    origin, _ = read_header(file)
    theirs = origin.network
    if theirs.conditioning != spec.conditioning:
        raise UserError(f"--init {weights} was trained with --conditioning {theirs.conditioning}, not "
                        f"{spec.conditioning}", "the same for both", f"pass --conditioning {theirs.conditioning}")
    pairs = {words: (getattr(theirs, name), getattr(spec, name)) for name, words in PARTS.items()}
    if different := [f"{name} {_told(old)}, not {_told(new)}" for name, (old, new) in pairs.items() if old != new]:
        raise UserError(f"--init {weights} has a network of {'; '.join(different)}", "the same network for both",
                        "give the flags that the weights were trained with (dit info tells them)")
    for name in ("process", "objective", "latent_norm"):
        old, new = getattr(origin.config, name), getattr(config, name)
        if old != new:
            raise UserError(f"--init {weights} was trained with {name} {old}, not {new}", "the same for both",
                            f"pass --{name.replace('_', '-')} {old}")
    for name, same in (("vae", same_autoencoder(origin, card)),
                       ("text_encoder", origin.text_encoder_sha256 == card.text_encoder_sha256)):
        if not same:
            flag = f"--{name.replace('_', '-')}"
            old, new = (getattr(one, name) or "digits" for one in (origin.config, config))
            raise UserError(f"--init {weights} was trained with {flag} {old}, which is not {flag} {new}",
                            "the same for both", "pass the one that the weights were trained with")
    return file


def initialise(network: nn.Module, card: Card, weights: Path) -> None:
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
    return "the usual" if value is None else str(value) if not isinstance(value, bool) else "yes" if value else "no"


def fresh_classes(network: nn.Module, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's own label embeddings, but for the null label's, or its own classification head."""
    table, head = "y_embedder.embedding_table.weight", ("head.weight", "head.bias")
    own = {name: tensor.clone() for name, tensor in network.state_dict().items() if name in (table, *head)}
    if table in own:
        own[table][-1] = trained[table][-1]
    return own


def load_weights(network: nn.Module, state_dict: dict[str, Tensor], file: Path) -> None:
    """Fill a network.

    Raises:
        UserError: tensors missing, unknown or of other shapes.
    """
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        cause = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise UserError(f"{file} does not fit its network ({cause})", "all of the network's tensors, in their shapes",
                        "take another checkpoint") from None


def build_loss(config: TrainConfig, network: Callable[..., Tensor], process: Process
               ) -> tuple[LossFunction, tuple[str, ...]]:
    """What training descends, and the names of its terms."""
    if is_classifier(config.model):
        return partial(classifier_loss, NoisyClassifier(network, process)), classifier.TERMS
    denoise = Denoiser(network, process, config.objective, config.learn_sigma)
    if config.loss == "vlb":
        return partial(variational_loss, denoise), ("vb",)
    return partial(diffusion_loss, denoise, min_snr_gamma=config.min_snr_gamma), loss_terms(config.learn_sigma)


def build_denoiser(config: TrainConfig, network: Callable[..., Tensor]) -> Denoiser:
    """Network and process as one."""
    return Denoiser(network, build_process(config), config.objective, config.learn_sigma)


def build_text_encoder(config: TrainConfig, device: torch.device) -> TextEncoder | None:
    """What reads the captions of a run with --conditioning text, which for digits is the bundled one."""
    return load_text_encoder(config.text_encoder or "digits", device) if config.conditioning == "text" else None


def settled(config: TrainConfig) -> TrainConfig:
    """The configuration as a card keeps it: other networks' folders by absolute paths, to be found from anywhere."""
    encoder = config.text_encoder and lasting(config.text_encoder)
    return replace(config, vae=lasting(config.vae), text_encoder=encoder)


def build_card(config: TrainConfig, source: Latents, encoder: TextEncoder | None = None,
               kin: Card | None = None) -> Card:
    """Describe the network that this configuration trains on this data.

    Args:
        kin: of a network whose latent statistics and classes it shares; statistics are measured on the data unless
            given.

    Raises:
        UserError: --num-classes is neither 0 nor enough for the data, or above 0 for data without classes; classes are
            named otherwise than those of `kin`, or fewer than a classifier tells apart; or a size that the network
            can not take.
    """
    config = settled(config)
    found = len(source.classes)
    num_classes = found if config.num_classes is None else config.num_classes
    if num_classes and not found and kin:
        raise UserError(f"--data {config.data} has no classes, the run has {num_classes}", "the same classes for both",
                        "make a subfolder for each of the run's classes (see `dit info RUN`)")
    if num_classes and not found:
        raise UserError(f"--num-classes {num_classes} for data without classes", "0, or one subfolder per class",
                        "drop --num-classes to train without classes")
    if 0 < num_classes < found:
        raise UserError(f"--num-classes {num_classes} for data with {found} classes", f"{found} or more, or 0 for none",
                        "drop --num-classes to count them in the data")
    if is_classifier(config.model) and found < 2:
        raise UserError(f"--model {config.model} with --data {config.data}, which has {found or 'no'} classes",
                        "two or more, to tell apart", "pass --data with one subfolder of images per class")
    channels, *size = source.shape
    spec = NetworkSpec(model=config.model, input_size=size_of(*size), in_channels=channels, num_classes=num_classes,
                       learn_sigma=config.learn_sigma, conditioning=config.conditioning,
                       text_width=encoder.width if encoder else None, unet_attention=config.unet_attention)
    require_size(config.image_size, spec, config.vae)
    classes = source.classes if num_classes else []
    card = Card(config=config, network=spec, classes=classes[:MOST_CAPTIONS] if encoder else classes,
                text_encoder_sha256=encoder.checksum if encoder else None)
    if kin and (other := named_otherwise(card, kin)):
        label, there, here = other
        raise UserError(f"--data {config.data} has class {label} {there!r}, the run has {here!r}",
                        "the same classes for both", "name the subfolders as the run's classes (see `dit info RUN`)")
    if config.latent_norm == "vae":
        return card
    if kin:
        return replace(card, latent_mean=kin.latent_mean, latent_std=kin.latent_std)
    mean, std = source.statistics()
    return replace(card, latent_mean=mean.tolist(), latent_std=std.tolist())


def require_size(image_size: Size, spec: NetworkSpec, vae: str) -> None:
    """Refuse images whose latents a network can not cut into patches, or halve.

    Args:
        image_size: of the images that become latents of the size in `spec`.

    Raises:
        UserError: in the pixels that the user asked for.
    """
    pixels, latents, multiple = sides(image_size), sides(spec.input_size), side_multiple(spec.model)
    if any(side % multiple for side in latents):
        unit = multiple * pixels[0] // latents[0]
        height, width = (max(1, round(side / unit)) * unit for side in pixels)
        raise UserError(f"{size_flag(image_size)} with {spec.model} on --vae {vae}", f"a multiple of {unit}",
                        f"pass {size_flag(size_of(height, width))}, or choose another network")


def normalised(autoencoder: Autoencoder, card: Card) -> Autoencoder:
    """The autoencoder with the latent statistics of the data, where the run measured them."""
    if card.latent_mean is None or card.latent_std is None:
        return autoencoder
    return autoencoder.with_statistics(card.latent_mean, card.latent_std)
