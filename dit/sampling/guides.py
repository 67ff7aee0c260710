"""Guidance of a sample: classifier-free, by a classifier, or by a weaker network (autoguidance)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit.config import SamplerConfig
from dit.config.sampling import INTERNAL
from dit.diffusion.classifier import NoisyClassifier
from dit.diffusion.guidance import (
    cfg,
    classifier_guidance,
    inner_pair,
    strong_of,
    unconditional,
    with_objective,
)
from dit.diffusion.process import Denoise, Denoiser
from dit.encoders.autoencoder import load_autoencoder
from dit.encoders.text import Captioned
from dit.errors import UserError
from dit.models.registry import is_classifier
from dit.runs.card import ModelCard, class_mismatch
from dit.runs.checkpoint_files import find_weights
from dit.runs.weights import read_weights
from dit.sampling.load import LoadedRun, load_network, load_run, with_captions
from dit.utils.files import describe_checksum, shell_quote
from dit.utils.image_size import format_size, sides


def build_guidance(
    denoise: Denoiser,
    card: ModelCard,
    settings: SamplerConfig,
    weaker: Denoiser | None,
    classifier: NoisyClassifier | None,
) -> Denoise:
    """Return the denoiser with the guidance that the settings ask for."""
    process, objective = denoise.process, denoise.objective
    num_classes = card.network.num_classes

    # the weak prediction is that of the null class (2207.12598), of a weaker network (2406.02507),
    # or of the inner head (2512.24176)
    pair = inner_pair(denoise) if settings.guide == INTERNAL else None
    guided = cfg(
        strong_of(pair) if pair else denoise,
        process,
        settings.cfg_scale,
        null_label=num_classes,
        interval=settings.cfg_interval,
        channels=settings.cfg_channels,
        guide=with_objective(weaker, process, objective) if weaker else None,
        pair=pair,
    )
    if not num_classes:
        # labels, if there are any, are the classifier's
        guided = unconditional(guided, null_label=0)
    if classifier is None:
        return guided
    # 2105.05233, algorithm 2, on top of the guidance above
    scale = settings.classifier_scale
    return classifier_guidance(guided, process, objective, classifier.gradient, scale)


def load_guide(run: LoadedRun, path: Path) -> LoadedRun:
    """Load a weaker run to guide `run`, resized as it is and with its captions."""
    flag = f"--guide {path}"
    with _naming(flag):
        guide = load_run(path, run.device, run.image_size if run.trained_size else None)

    # both must mean the same caption by an id, with --prompt too
    ours, theirs = run.denoise.network, guide.denoise.network
    if isinstance(ours, Captioned) and isinstance(theirs, Captioned):
        guide = with_captions(guide, theirs.network, ours.captions)
    require_compatible(flag, guide.card, run, run.card.network.num_classes)
    # a velocity averaged over a step and one of a moment have no common scale
    if guide.card.network.interval != run.card.network.interval:
        raise UserError(
            f"{flag} has --objective {guide.card.config.objective}, {run.weights.path} has "
            f"{run.card.config.objective}",
            "meanflow for both, or for none",
            "pass another guide",
        )
    return guide


def load_classifier(run: LoadedRun, path: Path) -> NoisyClassifier:
    """Load a classifier of noised latents to guide `run`, resized as it is."""
    flag = f"--classifier {path}"
    with _naming(flag):
        weights = read_weights(find_weights(path))
    if not is_classifier(weights.card.network.model):
        raise UserError(
            f"{flag} is a {weights.card.network.model}",
            "a run of `dit train-classifier`",
            f"train one: `dit train-classifier --run {shell_quote(run.home)}`",
        )
    # a run without classes has the names of the classifier's
    num_classes = run.card.network.num_classes or len(run.card.classes)
    require_compatible(flag, weights.card, run, num_classes)

    network: Any = load_network(weights, run.device)
    if run.trained_size:
        network.resize(run.card.network.input_size)
    return NoisyClassifier(network, run.denoise.process)


def require_compatible(flag: str, theirs: ModelCard, run: LoadedRun, num_classes: int) -> None:
    """Refuse a network with other latents, another process or other classes than the run's.

    Distributions of training times may differ. So may the size, if both are resized to another.
    """
    ours = run.card
    facts: dict[str, tuple[Any, Any]] = {
        "conditions that are": (_conditions(theirs), _conditions(ours)),
        "process": (theirs.config.process, ours.config.process),
        "autoencoder": _autoencoders(flag, theirs, run),
        "latent statistics": (_statistics(theirs), _statistics(ours)),
        "latents of": (_latents(theirs, run), _latents(ours, run)),
        "text encoder": (theirs.text_encoder_sha256, ours.text_encoder_sha256),
        "number of classes": (theirs.network.num_classes, num_classes),
    }
    # the same number of classes in another order would guide to the wrong one
    if mismatch := class_mismatch(theirs, ours):
        label, their_name, our_name = mismatch
        facts[f"class {label}"] = repr(their_name), repr(our_name)

    for name, (their_value, our_value) in facts.items():
        if their_value != our_value:
            raise UserError(
                f"{flag} has {name} {their_value}, {run.weights.path} has {our_value}",
                "the same for both",
                "pass a network that was trained on what this run was trained on",
            )


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    """Put the flag that asks for a network before the errors of loading it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag}: {error.given}", error.expected, error.do) from error


def _autoencoders(flag: str, theirs: ModelCard, run: LoadedRun) -> tuple[str, str]:
    """Name both autoencoders by their checksums; a card of an earlier version has none."""
    ours, name = run.autoencoder.checksum, theirs.config.vae
    same_name = name == run.card.config.vae
    checksum = theirs.vae_sha256 or (ours if same_name else None)
    if not checksum:
        with _naming(flag):
            checksum = load_autoencoder(name, run.device).checksum

    if checksum == ours:
        return "the same", "the same"  # under whatever name
    return (
        f"{name} ({describe_checksum(checksum)})",
        f"{run.card.config.vae} ({describe_checksum(ours)})",
    )


def _conditions(card: ModelCard) -> str:
    return "captions" if card.network.conditioning == "text" else "classes"


def _statistics(card: ModelCard) -> str:
    if card.latent_mean is None or card.latent_std is None:
        return "of the autoencoder"
    channels = zip(card.latent_mean, card.latent_std, strict=True)
    return ", ".join(f"{mean:.4g}±{std:.4g}" for mean, std in channels)


def _latents(card: ModelCard, run: LoadedRun) -> str:
    size = "any size" if run.trained_size else format_size(sides(card.network.input_size))
    return f"{card.network.in_channels} channels, {size}"
