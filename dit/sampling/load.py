"""Load a trained network, ready to sample from."""

import sys
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
from dit.distributed.device import free_main_memory, library_versions
from dit.distributed.launcher import read_launch
from dit.encoders.autoencoder import Autoencoder, load_autoencoder
from dit.encoders.text import Captioned, Captions
from dit.errors import UserError
from dit.models.registry import is_classifier, is_own
from dit.runs.card import GivenSpec, ModelCard
from dit.runs.checkpoint_files import find_weights, notes_on_incomplete
from dit.runs.weights import Weights, read_header, read_weights
from dit.utils.files import describe_checksum, shell_quote
from dit.utils.image_size import Size, sides, size_flag, size_of

LIBRARIES = ("dit", "torch", "numpy", "timm", "diffusers")
TEXT_LIBRARIES = ("transformers", "tokenizers")


@dataclass(frozen=True)
class LoadedRun:
    """A trained network with its process and autoencoder.

    Args:
        weights: EMA weights; the card has the size at which to sample.
        denoise: Network and process.
        autoencoder: With the latent statistics of the run.
        device: Of all networks.
        trained_size: Size of the training images, if the network was resized to another.
    """

    weights: Weights
    denoise: Denoiser
    autoencoder: Autoencoder
    device: torch.device
    trained_size: Size | None = None

    @property
    def card(self) -> ModelCard:
        """Settings, shapes and class names of the network."""
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
        """Versions of the libraries that the images depend on."""
        captioned = isinstance(self.denoise.network, Captioned)
        return library_versions(*LIBRARIES, *(TEXT_LIBRARIES if captioned else ()))

    @property
    def home(self) -> Path:
        """The run directory of the weights, or the folder of a lone weights file."""
        return self.weights.home


def load_run(
    path: Path,
    device: torch.device,
    size: Size | None = None,
    module: nn.Module | None = None,
) -> LoadedRun:
    """Load the EMA of a run directory, a checkpoint directory or a weights file.

    Args:
        path: Any of the three.
        device: Where to put the networks.
        size: Image size to sample at; that of training unless given.
        module: The network that Python code passed for training, which the card only names.
    """
    file = find_weights(path)
    _require_memory(file)
    weights = read_weights(file)
    card = weights.card
    weights = replace(weights, card=replace(card, network=GivenSpec.of(card.network, module)))
    if is_classifier(weights.card.network.model):
        raise UserError(
            f"{path} is a {weights.card.network.model}",
            "a diffusion run",
            "pass it as --classifier",
        )
    network = load_network(weights, device)
    denoise = build_denoiser(weights.card.config, network)
    run = LoadedRun(weights, denoise, _load_autoencoder(weights, device), device)

    # with its captions, a network of text takes ids like all others
    if weights.card.config.conditioning == "text":
        encoder = _load_encoder(weights, device)
        run = with_captions(run, network, Captions(weights.card.classes, "", encoder))
    if size is None or sides(size) == run.image_size:
        return run
    return _resize(run, network, size)


def _require_memory(file: Path) -> None:
    """Refuse a weights file that is larger than the memory."""
    size, free = file.stat().st_size, free_main_memory()
    if size > free:
        raise UserError(
            f"{file} takes {size / 2**30:.2f} GiB",
            f"at most the {free / 2**30:.2f} GiB of main memory that are free",
            "use a machine with more memory",
        )


def load_network(weights: Weights, device: torch.device) -> nn.Module:
    """Return the trained network, frozen."""
    with device:
        network = build_network(weights.card.network)
    load_weights(network, weights.state_dict, weights.path)
    return network.eval().requires_grad_(False)


def load_to_sample(path: Path, device: torch.device, config: SamplerConfig) -> LoadedRun:
    """Load a run at the size and with the class names that the sampler flags ask for.

    Warns of checkpoints that are newer and incomplete.
    """
    if read_launch().rank == 0:
        for note in notes_on_incomplete(path, "sampling from"):
            print(f"warning: {note}", file=sys.stderr)
    return with_classifier_labels(load_run(path, device, config.image_size), config.classifier)


def move_run(run: LoadedRun, device: torch.device) -> LoadedRun:
    """Return a run on a device, to which its networks are moved."""
    without_captions(run.denoise.network).to(device)
    moved = replace(run, autoencoder=run.autoencoder.to(device), device=device)
    network = run.denoise.network
    if not isinstance(network, Captioned):
        return moved
    *texts, null = network.captions.texts
    encoder = network.captions.encoder
    encoder.network.to(device)
    # not the embeddings that it has, which are elsewhere
    captions = Captions(texts, null, encoder)
    return replace(
        moved, denoise=replace(run.denoise, network=Captioned(network.network, captions))
    )


def without_captions(network: Callable[..., Tensor]) -> Any:
    """Return the network itself, which takes embeddings where the run has captions."""
    return network.network if isinstance(network, Captioned) else network


def _resize(run: LoadedRun, network: Any, size: Size) -> LoadedRun:
    _, *latent = run.autoencoder.latent_shape(size)
    card = replace(
        run.card,
        config=replace(run.card.config, image_size=size),
        network=replace(run.card.network, input_size=size_of(*latent)),
    )
    require_size(size, card.network, card.config.vae)

    if is_own(card.network.model) and not hasattr(network, "resize"):
        raise UserError(
            f"{size_flag(size)} for {card.network.model}, which has no method resize",
            f"{size_flag(run.card.config.image_size)}, as in training",
            f"drop {size_flag(size).split()[0]}",
        )
    # interpolates the position embeddings
    network.resize(tuple(latent))
    return replace(_with_card(run, card), trained_size=size_of(*run.image_size))


def _with_card(run: LoadedRun, card: ModelCard) -> LoadedRun:
    return replace(run, weights=replace(run.weights, card=card))


# -- classes and captions ------------------------------------------------------------------------


def with_prompts(run: LoadedRun, prompts: Sequence[str], negative: str = "") -> LoadedRun:
    """Return a text run whose classes are the prompts and whose null class is the negative one."""
    network = run.denoise.network
    if isinstance(network, Captioned):
        captions = Captions(prompts or run.card.classes, negative, network.captions.encoder)
        return with_captions(run, network.network, captions)

    flag, do = f"--negative-prompt {negative!r}", "drop it: guidance leads away from no class"
    if prompts:
        flag, do = f"--prompt {prompts[0]!r}", "pass --classes instead"
    conditioning = run.card.network.conditioning
    raise UserError(
        f"{flag} for {run.weights.path}, trained with --conditioning {conditioning}",
        "a run with --conditioning text",
        do,
    )


def with_captions(run: LoadedRun, network: Callable[..., Tensor], captions: Captions) -> LoadedRun:
    """Return the run with these captions as its classes; the data may have had more."""
    # the last text is that of the null class
    *classes, _ = captions.texts
    spec = replace(run.card.network, num_classes=len(classes))
    card = replace(run.card, classes=classes, class_counts=None, network=spec)
    run = _with_card(run, card)
    denoise = replace(run.denoise, network=Captioned(network, captions))
    return replace(run, denoise=denoise)


def with_classifier_labels(run: LoadedRun, classifier: Path | None) -> LoadedRun:
    """Give a run without classes the class names of the classifier that guides it."""
    if classifier is None or run.card.network.num_classes:
        return run
    # 2105.05233 guides unconditional models too; the names are in the header of its weights
    card, _ = read_header(find_weights(classifier))
    classes = [card.class_name(i) for i in range(card.network.num_classes)]
    counts = card.class_counts
    if counts is not None:
        # the classifier may take more classes than its data had
        counts = counts + [0] * (len(classes) - len(counts))
    return _with_card(run, replace(run.card, classes=classes, class_counts=counts))


# -- networks beside the run's own ---------------------------------------------------------------


def _load_autoencoder(weights: Weights, device: torch.device) -> Autoencoder:
    """Load the autoencoder of training, with the run's latent statistics."""
    card = weights.card
    load = partial(load_autoencoder, card.config.vae, device)
    autoencoder = _load_as_trained("--vae", card.config.vae, card.vae_sha256, weights, load)
    channels = card.network.in_channels
    if autoencoder.channels != channels:
        raise UserError(
            f"{weights.path} makes latents of {channels} channels, and --vae {card.config.vae} has "
            f"{autoencoder.channels}",
            "the autoencoder of these latents",
            "convert it again, with the right --vae",
        )
    return with_data_statistics(autoencoder, card)


def _load_encoder(weights: Weights, device: torch.device) -> Any:
    """Load the text encoder of training."""
    config, checksum = weights.card.config, weights.card.text_encoder_sha256
    load = partial(build_text_encoder, config, device)
    return _load_as_trained("--text-encoder", config.text_encoder, checksum, weights, load)


def _load_as_trained(
    flag: str, name: str | None, checksum: str | None, weights: Weights, load: Callable[[], Any]
) -> Any:
    """Return what `load` loads; refuse it if the checksum is not that of training."""
    do = f"put it back at {name}, or a link to where it is now (ln -s NOW {shell_quote(name)})"
    try:
        network = load()
    except UserError as error:
        given = f"{error.given}; {weights.path} was trained with it"
        raise UserError(given, error.expected, do) from error

    # another autoencoder or encoder would give wrong images without an error
    if checksum and network.checksum != checksum:
        raise UserError(
            f"{flag} {name} with {describe_checksum(network.checksum)}",
            f"{describe_checksum(checksum)}, the one that the run was trained with",
            do,
        )
    return network
