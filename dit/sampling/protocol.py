"""How a sample was made: settings, networks and versions, as samples.json keeps them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit.config import SamplerConfig
from dit.distributed.device import compute_precision
from dit.encoders.text import Captioned
from dit.runs.checkpoints import find_weights
from dit.runs.weights import read_header
from dit.sampling.load import LoadedRun
from dit.sampling.pipeline import SamplingPipeline
from dit.utils.files import sha256
from dit.utils.image_size import size_of


def protocol(
    run: LoadedRun, plan: SamplingPipeline, config: SamplerConfig, classes: Sequence[int]
) -> dict[str, Any]:
    """All that the images depend on, as plain JSON values; what two sets of images must share to be one."""
    weights, card = run.weights, run.card
    options: dict[str, Any] = getattr(plan.sampler, "keywords", {})
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
        "sampler": plan.name,
        "steps": plan.steps,
        **({"spacing": config.spacing} if config.spacing != "uniform" else {}),
        "cfg_scale": config.cfg_scale,
        "cfg_interval": list(config.cfg_interval),
        "cfg_channels": config.cfg_channels,
        **(_network("guide", config.guide) if config.guide else {}),
        **(
            {
                **_network("classifier", config.classifier),
                "classifier_scale": config.classifier_scale,
            }
            if config.classifier
            else {}
        ),
        **({"block_cache": config.block_cache} if config.block_cache else {}),
        "eta": options.get("eta"),  # none of another sampler's business
        "variance": options.get("variance"),
        "seed": config.seed,
        "precision": compute_precision(run.device, config.precision),
        "classes": [] if card.unconditional else list(classes),
        **_text(run, classes),
        "versions": run.versions,
    }


def _network(role: str, path: Path) -> dict[str, Any]:
    """Another network that guides: what it is, wherever it lies."""
    file = find_weights(path)
    card, step = read_header(file)
    return {role: f"{card.network.model} at step {step}", f"{role}_sha256": sha256(file)}


def _text(run: LoadedRun, classes: Sequence[int]) -> dict[str, Any]:
    """What else the images of a text run depend on; nothing for other runs."""
    network = run.denoise.network
    if not isinstance(network, Captioned):
        return {}
    *_, null = network.captions.texts
    encoder = network.captions.encoder
    return {
        "prompts": [run.card.class_name(c) for c in classes],
        "negative_prompt": null,
        "text_encoder": encoder.name,
        "text_encoder_sha256": encoder.checksum,
    }
