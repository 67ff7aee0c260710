"""A trained network, ready to sample from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.build import (
    build_denoiser,
    build_network,
    build_text_encoder,
    load_weights,
    require_size,
    with_data_statistics,
)
from dit.config import SamplerConfig
from dit.diffusion.process import Denoiser
from dit.distributed.device import library_versions
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.encoders.text import Captioned, Captions, TextEncoder
from dit.errors import UserError
from dit.models.registry import is_classifier
from dit.runs.card import ModelCard
from dit.runs.checkpoints import find_weights
from dit.runs.weights import Weights, read_header, read_weights
from dit.utils.files import shell_quote
from dit.utils.image_size import Size, sides, size_of

LIBRARIES = ("dit", "torch", "numpy", "timm", "diffusers")
TEXT_LIBRARIES = ("transformers", "tokenizers")  # encoder, and what cuts captions into its tokens


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, ready to sample from.

    Args:
        weights: with a card that tells the size at which is sampled.
        trained_size: of images, where the network was trained at another one.
    """

    weights: Weights
    denoise: Denoiser
    autoencoder: Autoencoder
    device: torch.device
    trained_size: Size | None = None

    @property
    def card(self) -> ModelCard:
        """What the network is."""
        return self.weights.card

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        height, width = sides(self.card.network.input_size)
        return self.card.network.in_channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return sides(self.card.config.image_size)

    @property
    def versions(self) -> dict[str, str | None]:
        """Of the libraries that its images depend on."""
        return library_versions(
            *LIBRARIES, *(TEXT_LIBRARIES if isinstance(self.denoise.network, Captioned) else ())
        )

    @property
    def home(self) -> Path:
        """The run directory that the weights lie in, or the folder of weights that lie alone."""
        return self.weights.home


def load_run(path: Path, device: torch.device, size: Size | None = None) -> LoadedRun:
    """The EMA of a run directory, a checkpoint directory or a weights file.

    Args:
        size: of the images to sample, where it is not that of training; the network is resized to it.

    Raises:
        UserError: missing, damaged, a classifier, its autoencoder is missing, or a size that autoencoder or patches do
            not divide.
    """
    weights = read_weights(find_weights(path))
    if is_classifier(weights.card.network.model):
        raise UserError(
            f"{path} is a {weights.card.network.model}",
            "a diffusion run",
            "pass it as --classifier",
        )
    network = load_network(weights, device)
    denoise, autoencoder = (
        build_denoiser(weights.card.config, network),
        _load_autoencoder(weights, device),
    )
    run = LoadedRun(weights, denoise, autoencoder, device)
    if encoder := _load_encoder(weights, device):
        run = with_captions(run, network, Captions(weights.card.classes, "", encoder))
    return run if size is None or sides(size) == run.image_size else _resized(run, network, size)


def load_network(weights: Weights, device: torch.device) -> nn.Module:
    """A trained network, frozen.

    Raises:
        UserError: tensors missing, unknown or of other shapes.
    """
    with device:
        network = build_network(weights.card.network)
    load_weights(network, weights.state_dict, weights.path)
    return network.eval().requires_grad_(False)


def _resized(run: LoadedRun, network: Any, size: Size) -> LoadedRun:
    _, *latent = run.autoencoder.latent_shape(size)
    card = replace(
        run.card,
        config=replace(run.card.config, image_size=size),
        network=replace(run.card.network, input_size=size_of(*latent)),
    )
    require_size(size, card.network, card.config.vae)
    network.resize(tuple(latent))
    return replace(
        run, weights=replace(run.weights, card=card), trained_size=size_of(*run.image_size)
    )


def prompted(run: LoadedRun, prompts: Sequence[str], negative: str = "") -> LoadedRun:
    """A run of text whose classes are these prompts, and whose null class is the negative prompt.

    Raises:
        UserError: not a run of text.
    """
    captioned = run.denoise.network
    if not isinstance(captioned, Captioned):
        what, instead = (
            (f"--prompt {prompts[0]!r}", "pass --classes instead")
            if prompts
            else (f"--negative-prompt {negative!r}", "drop it: guidance leads away from no class")
        )
        raise UserError(
            f"{what} for {run.weights.path}, trained with --conditioning {run.card.network.conditioning}",
            "a run with --conditioning text",
            instead,
        )
    captions = Captions(prompts or run.card.classes, negative, captioned.captions.encoder)
    return with_captions(run, captioned.network, captions)


def with_captions(run: LoadedRun, network: Callable[..., Tensor], captions: Captions) -> LoadedRun:
    """Ids are those of these captions, of which data may have had more."""
    *classes, _ = captions.texts
    card = replace(
        run.card, classes=classes, network=replace(run.card.network, num_classes=len(classes))
    )
    return replace(
        run,
        weights=replace(run.weights, card=card),
        denoise=replace(run.denoise, network=Captioned(network, captions)),
    )


def _load_autoencoder(weights: Weights, device: torch.device) -> Autoencoder:
    """The autoencoder that a run was trained with, with the run's own normalisation."""
    card = weights.card
    load = partial(load_autoencoder, card.config.vae, device)
    return with_data_statistics(
        _as_trained("--vae", card.config.vae, weights, load, card.vae_sha256), card
    )


def _load_encoder(weights: Weights, device: torch.device) -> TextEncoder | None:
    """The text encoder that a run was trained with; none for runs without captions."""
    config = weights.card.config
    load = partial(build_text_encoder, config, device)
    return _as_trained(
        "--text-encoder", config.text_encoder, weights, load, weights.card.text_encoder_sha256
    )


def _as_trained(
    flag: str, place: str | None, weights: Weights, load: Callable[[], Any], checksum: str | None
) -> Any:
    """What `load` finds, with the checksum that is known of it.

    Raises:
        UserError: it is not where it was, or is another one.
    """
    do = f"put it back at {place}, or a link to where it is now (ln -s NOW {shell_quote(place)})"
    try:
        found = load()
    except UserError as error:
        raise UserError(
            f"{error.given}; {weights.path} was trained with it", error.expected, do
        ) from error
    if checksum and found.checksum != checksum:
        raise UserError(
            f"{flag} {place} with SHA-256 {str(found.checksum)[:8]}",
            f"{checksum[:8]}, the one that the run was trained with",
            do,
        )
    return found


def load_to_sample(path: Path, device: torch.device, config: SamplerConfig) -> LoadedRun:
    """A run at the size that the flags ask for, and with the classes of the classifier where it has none.

    Raises:
        UserError: as `load_run` does, or no weights of a classifier.
    """
    return with_classifier_labels(load_run(path, device, config.image_size), config.classifier)


def with_classifier_labels(run: LoadedRun, classifier: Path | None) -> LoadedRun:
    """A run without classes that a classifier guides has the classifier's; any other is as it was."""
    if classifier is None or run.card.network.num_classes:
        return run
    judge, _ = read_header(find_weights(classifier))
    classes = [judge.class_name(i) for i in range(judge.network.num_classes)]
    return replace(run, weights=replace(run.weights, card=replace(run.card, classes=classes)))


def class_ids(text: str | None, card: ModelCard) -> list[int]:
    """Class ids from a flag such as `0,1,2`; for None all that the network was trained on.

    Raises:
        UserError: not numbers, or out of range.
    """
    if text is None:
        return card.ids
    if card.unconditional:
        raise UserError(
            f"--classes {text} for a run without classes",
            "a run that was trained with classes",
            "drop --classes",
        )
    ids, num_classes = text.split(","), card.network.num_classes or len(card.classes)
    if not all(i.strip().isdecimal() and int(i) < num_classes for i in ids):
        raise UserError(
            f"--classes {text}",
            f"class ids from 0 to {num_classes - 1}, separated by commas",
            "see `dit info RUN` for the classes of a run",
        )
    return [int(i) for i in ids]
