"""The protocol record: everything that two scores must share to be comparable."""

import collections
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from dit.distributed.device import device_kind, library_versions
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics import precision_recall as neighbours
from dit.evaluation.references import Reference
from dit.evaluation.samples import is_unconditional
from dit.utils.image_size import Size, format_size, sides

UNKNOWN = "unknown"
LIBRARIES = (
    "dit",
    "torch",
    "torch-fidelity",
    "numpy",
    "scipy",
    "scikit-learn",
    "diffusers",
    "timm",
)
SAMPLING = (
    *("sampler", "steps", "cfg_scale", "cfg_interval", "cfg_channels", "eta", "variance"),
    *("seed", "precision", "weights", "weights_sha256", "step", "ema", "process", "objective"),
    *("vae", "vae_sha256", "data"),
)
"""Entries of samples.json in the protocol's order, `unknown` where missing; others follow them."""

Section = dict[str, Any]


def build_protocol(
    samples: ImageSet,
    digest: str,
    settings: Section,
    reference: Reference,
    reference_digest: str,
    extractors: Sequence[Extractor],
    device: torch.device,
    resamples: int = 0,
) -> dict[str, Section]:
    """Return section -> entry -> value, plain JSON values.

    Args:
        digest, reference_digest: SHA-256 of all pixels, or of statistics.
        settings: content of samples.json.
        resamples: of the bootstrap.
    """
    return {
        "samples": {
            "source": samples.name,
            "count": len(samples),
            "size": format_size(samples.size),
            "labels": "none" if is_unconditional(settings) else describe_balance(samples.labels),
            "pixels_sha256": digest,
        },
        "sampling": _sampling(settings),
        "reference": _reference(reference, reference_digest),
        **{f"features ({extractor.name})": _features(extractor) for extractor in extractors},
        "scores": {**_scores(), "bootstrap resamples": resamples},
        "software": _software(device),
    }


def _sampling(settings: Section) -> Section:
    # Versions are in the section on software.
    recorded = {name: value for name, value in settings.items() if name != "versions"}
    entries = {**dict.fromkeys(SAMPLING, UNKNOWN), **recorded}
    if entries["cfg_channels"] is None:
        entries["cfg_channels"] = "all"
    return entries


def _reference(reference: Reference, digest: str) -> Section:
    images, statistics = reference.images, reference.statistics
    count: Any = UNKNOWN
    size, crop = UNKNOWN, UNKNOWN
    # With both, scores other than distances are of the images.
    if images:
        count, size, crop = len(images), format_size(images.size), _crop(reference.crop)
    elif statistics:
        count = statistics.count or UNKNOWN
        size = statistics.record.get("size", UNKNOWN)
        crop = _crop(statistics.record["crop"]) if "crop" in statistics.record else UNKNOWN
    return {
        "source": reference.name,
        "count": count,
        "size": size,
        "crop": crop,
        "statistics": "from the file" if statistics else "computed",
        "sha256": digest,
    }


def _crop(size: Size | None) -> str:
    return f"ADM's, to {format_size(sides(size))}" if size else "none"


def _features(extractor: Extractor) -> Section:
    return {
        "weights": extractor.weights,
        "weights_sha256": extractor.checksum,
        "preprocessing": extractor.preprocessing,
        "widths (features, logits, spatial)": list(extractor.widths),
    }


def _scores() -> Section:
    """Return the constants of the scores."""
    kid = f"{metrics.KID_SUBSETS} subsets of {metrics.KID_SUBSET_SIZE} images"
    most = f"at most {metrics.PRC_REFERENCE}"
    return {
        "KID": f"{kid}, or of half the smaller set",
        "neighbours (precision, recall)": neighbours.NEIGHBOURS,
        "neighbours (density, coverage)": neighbours.DENSITY_NEIGHBOURS,
        "reference images (precision, recall, density, coverage)": most,
        "IS": f"splits of {metrics.IS_SPLIT} images in order",
        "IS (torch-fidelity)": f"{metrics.IS_SPLITS} splits, shuffled",
        "subset seed": metrics.SEED,
    }


def describe_balance(labels: Sequence[str] | None) -> str:
    """Return the number of images per class, in words."""
    if labels is None:
        return UNKNOWN
    counts = collections.Counter(labels).values()
    low, high = min(counts), max(counts)
    each = str(low) if low == high else f"{low} to {high}"
    return f"{len(counts)} classes, {each} images each"


def _software(device: torch.device) -> Section:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "device": "CPU" if device.type == "cpu" else device_kind(device),
        **library_versions(*LIBRARIES),
    }
