"""The protocol of a sample: settings, networks and versions, as samples.json keeps them."""

from pathlib import Path
from typing import Any

from dit.config.sampling import INTERNAL
from dit.encoders.text import Captioned
from dit.runs.checkpoint_files import find_weights
from dit.runs.weights import read_header
from dit.sampling.pipeline import SamplingPipeline
from dit.utils.files import sha256
from dit.utils.image_size import size_of


def protocol(pipeline: SamplingPipeline) -> dict[str, Any]:
    """Return all that the images depend on, as plain JSON values.

    Two sets of images with the same protocol can be merged.
    """
    run, settings = pipeline.run, pipeline.settings
    weights, card = run.weights, run.card

    # a key that is newer than samples.json itself is there only if it is not at its default:
    # folders of earlier versions must still match
    return {
        "weights": weights.path.name,
        "weights_sha256": sha256(weights.path),
        "step": weights.step,
        "ema": card.average,
        "network": card.network.summary,
        "data": card.config.data,
        "vae": run.autoencoder.name,
        "vae_sha256": run.autoencoder.checksum,
        "image_size": size_of(*run.image_size),
        **({"trained_size": run.trained_size} if run.trained_size else {}),
        "process": card.config.process,
        "objective": card.config.objective,
        "sampler": settings.sampler,
        "steps": pipeline.steps,
        **({"spacing": settings.spacing} if settings.spacing != "uniform" else {}),
        "cfg_scale": settings.cfg_scale,
        "cfg_interval": list(settings.cfg_interval),
        "cfg_channels": settings.cfg_channels,
        **_guides(pipeline),
        **({"block_cache": settings.block_cache} if settings.block_cache else {}),
        "eta": settings.eta if settings.sampler == "ddim" else None,
        "variance": settings.variance if settings.sampler == "ddpm" else None,
        "seed": settings.seed,
        "precision": settings.precision,
        "classes": [] if card.unconditional else list(pipeline.classes),
        **_captions(pipeline),
        "versions": run.versions,
    }


def _guides(pipeline: SamplingPipeline) -> dict[str, Any]:
    """Describe the other networks that guide, by content and not by path."""
    settings = pipeline.settings
    entries: dict[str, Any] = {}
    # no paths: the same network elsewhere makes the same images
    if settings.guide == INTERNAL:
        entries["guide"] = "its inner head"
    elif settings.guide:
        entries |= _network("guide", settings.guide)
    if settings.classifier:
        entries |= _network("classifier", settings.classifier)
        entries["classifier_scale"] = settings.classifier_scale
    return entries


def _network(role: str, path: Path) -> dict[str, Any]:
    file = find_weights(path)
    card, step = read_header(file)
    return {role: f"{card.network.model} at step {step}", f"{role}_sha256": sha256(file)}


def _captions(pipeline: SamplingPipeline) -> dict[str, Any]:
    """Describe prompts and text encoder; nothing for runs without captions."""
    run = pipeline.run
    network = run.denoise.network
    if not isinstance(network, Captioned):
        return {}
    *_, null = network.captions.texts
    encoder = network.captions.encoder
    return {
        "prompts": [run.card.class_name(c) for c in pipeline.classes],
        "negative_prompt": null,
        "text_encoder": encoder.name,
        "text_encoder_sha256": encoder.checksum,
    }
