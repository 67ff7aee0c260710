"""How the scores of a run in training were measured: scores.json, protocols by their `eval`."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from dit.config import SamplerConfig
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.protocol import build_protocol
from dit.evaluation.references import Reference
from dit.evaluation.samples import settings_in_use
from dit.training.session import TrainingSession
from dit.utils.files import write_json
from dit.utils.typed_json import read_json

RECORD = "scores.json"  # in a run


def eval_key(count: int, settings: SamplerConfig, reference: str, extractor: Extractor) -> str:
    """Return six digits that are equal for comparable scores; `reference` is its digest."""
    samples = [count, settings_in_use(settings)]
    text = json.dumps([*samples, reference, extractor.name, extractor.checksum])
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def read_protocols(run: Path) -> dict[str, Any]:
    """Return the protocols so far."""
    file = run / RECORD
    if not file.exists():
        return {}
    expected = "the protocols of scores that train.py wrote"
    return read_json(file, dict[str, dict[str, Any]], expected, f"remove {file}")


def record_protocol(
    session: TrainingSession,
    protocols: dict[str, Any],
    key: str,
    images: ImageSet,
    settings: SamplerConfig,
    reference: Reference,
    digest: str,
    extractor: Extractor,
) -> None:
    """Add the protocol of scores to those of scores.json, unless it has one with this key."""
    if key in protocols:
        return
    protocols[key] = build_protocol(
        dataclasses.replace(images, name="the EMA, the same seeds at every step"),
        "of other pixels at every step",
        _sampling(session, settings),
        reference,
        digest,
        [extractor],
        session.ranks.device,
    )
    write_json(session.run / RECORD, protocols)


def _sampling(session: TrainingSession, settings: SamplerConfig) -> dict[str, Any]:
    """Return the section `sampling`, as samples.json has it but for the weights, which change."""
    config = session.config
    section = {
        **settings_in_use(settings),
        # neither dpmpp_2m nor euler uses them
        **dict.fromkeys(("eta", "variance")),
        "weights": "the EMA at every step",
        "weights_sha256": "in meta.json of checkpoints",
        "step": "as in metrics.jsonl",
        "ema": config.ema,
        "network": session.card.network.summary,
        "process": config.process,
        "objective": config.objective,
        "vae": session.autoencoder.name,
        "vae_sha256": session.autoencoder.checksum,
        "data": config.data,
    }
    if session.captions:
        section["text_encoder_sha256"] = session.card.text_encoder_sha256
    return section
