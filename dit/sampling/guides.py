"""Guidance of a sample: classifier-free, by a classifier, by a weaker network (autoguidance)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit.config import SamplerConfig
from dit.diffusion.classifier import NoisyClassifier
from dit.diffusion.guidance import cfg, classifier_guidance, ignoring_labels, with_objective
from dit.diffusion.process import Denoise
from dit.encoders.autoencoder import load_autoencoder
from dit.encoders.text import Captioned
from dit.errors import UserError
from dit.models.registry import is_classifier
from dit.runs.card import ModelCard, class_mismatch
from dit.runs.checkpoints import find_weights
from dit.runs.weights import read_weights
from dit.sampling.load import LoadedRun, load_network, load_run, with_captions
from dit.utils.files import shell_quote
from dit.utils.image_size import format_size, sides


def build_guidance(
    run: LoadedRun, config: SamplerConfig, guide: LoadedRun | None, judge: NoisyClassifier | None
) -> Denoise:
    """The run's denoiser, guided by what is given.

    Raises:
        UserError: guidance that the network can not serve.
    """
    spec, denoise, channels = run.card.network, run.denoise, config.cfg_channels
    if channels is not None and channels > spec.in_channels:
        raise UserError(
            f"--cfg-channels {channels}",
            f"at most {spec.in_channels} latent channels",
            "pass fewer, or drop it to guide all",
        )
    if config.cfg_scale != 1 and not guide and not has_null_class(run.card):
        why = "was trained with --label-dropout 0" if spec.num_classes else "knows no classes"
        raise UserError(
            f"--cfg-scale {config.cfg_scale:g} for {run.weights.path}, which {why}",
            "a network with classes and a null class",
            "pass --cfg-scale 1, or a weaker run with --guide",
        )
    process, objective = denoise.process, denoise.objective
    guided = cfg(
        denoise,
        process,
        config.cfg_scale,
        spec.num_classes,
        interval=config.cfg_interval,
        channels=channels,
        guide=with_objective(guide.denoise, process, objective) if guide else None,
    )
    if not spec.num_classes:
        guided = ignoring_labels(
            guided, 0
        )  # labels, if there are any, are the classifier's: see `labelled`
    if judge is None:
        return guided
    return classifier_guidance(guided, process, objective, judge.gradient, config.classifier_scale)


def has_null_class(card: ModelCard) -> bool:
    """Whether a network learned what an image of no class is, which classifier-free guidance leads away from."""
    return bool(card.network.num_classes and card.config.label_dropout)


def load_guide(run: LoadedRun, path: Path) -> LoadedRun:
    """A weaker run to guide `run`: in its size and on its captions.

    Raises:
        UserError: it is none of the same latents, noise and classes.
    """
    with _named(f"--guide {path}"):
        guide = load_run(path, run.device, run.image_size if run.trained_size else None)
    ours, theirs = run.denoise.network, guide.denoise.network
    if isinstance(ours, Captioned) and isinstance(theirs, Captioned):
        guide = with_captions(guide, theirs.network, ours.captions)
    _require_kin(f"--guide {path}", guide.card, run, run.card.network.num_classes)
    return guide


def load_classifier(run: LoadedRun, path: Path) -> NoisyClassifier:
    """A classifier to guide `run`, in its size.

    Raises:
        UserError: it is none, or not of the same latents, noise and classes.
    """
    with _named(f"--classifier {path}"):
        weights = read_weights(find_weights(path))
    if not is_classifier(weights.card.network.model):
        raise UserError(
            f"--classifier {path} is a {weights.card.network.model}",
            "a run of `dit train-classifier`",
            f"train one: dit train-classifier --run {shell_quote(run.home)}",
        )
    _require_kin(
        f"--classifier {path}",
        weights.card,
        run,
        run.card.network.num_classes or len(run.card.classes),
    )
    network: Any = load_network(weights, run.device)
    if run.trained_size:
        network.resize(run.card.network.input_size)
    return NoisyClassifier(network, run.denoise.process)


def _require_kin(flag: str, theirs: ModelCard, run: LoadedRun, num_classes: int) -> None:
    """That another network reads the latents and the noise of a run, and means the same `num_classes` classes.

    Times of training may differ; so may the size, where both are resized to another one.
    """
    ours = run.card
    with _named(flag):
        known = run.autoencoder.checksum if theirs.config.vae == ours.config.vae else None
        checksum = (
            theirs.vae_sha256 or known or load_autoencoder(theirs.config.vae, run.device).checksum
        )
    facts: dict[str, tuple[Any, Any]] = {
        "conditions that are": (_conditions(theirs), _conditions(ours)),
        "process": (theirs.config.process, ours.config.process),
        "autoencoder": ("that one", "that one")
        if checksum == run.autoencoder.checksum
        else (
            f"{theirs.config.vae} (SHA-256 {str(checksum)[:8]})",
            f"{ours.config.vae} (SHA-256 {str(run.autoencoder.checksum)[:8]})",
        ),
        "latent statistics": (_statistics(theirs), _statistics(ours)),
        "latents of": (_latents(theirs, run), _latents(ours, run)),
        "text encoder": (theirs.text_encoder_sha256, ours.text_encoder_sha256),
        "number of classes": (theirs.network.num_classes, num_classes),
    }
    if other := class_mismatch(theirs, ours):
        label, there, here = other
        facts[f"class {label}"] = repr(there), repr(here)
    for name, (there, here) in facts.items():
        if there != here:
            raise UserError(
                f"{flag} has {name} {there}, {run.weights.path} has {here}",
                "the same for both",
                "pass a network that was trained on what this run was trained on",
            )


@contextmanager
def _named(flag: str) -> Iterator[None]:
    """Mistakes in loading another network name the flag that asks for it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag}: {error.given}", error.expected, error.do) from error


def _conditions(card: ModelCard) -> str:
    return "captions" if card.network.conditioning == "text" else "classes"


def _statistics(card: ModelCard) -> str:
    """Mean and deviation of each channel, in words."""
    if card.latent_mean is None or card.latent_std is None:
        return "of the autoencoder"
    return ", ".join(
        f"{mean:.4g}±{std:.4g}" for mean, std in zip(card.latent_mean, card.latent_std, strict=True)
    )


def _latents(card: ModelCard, run: LoadedRun) -> str:
    size = "any size" if run.trained_size else format_size(sides(card.network.input_size))
    return f"{card.network.in_channels} channels, {size}"
