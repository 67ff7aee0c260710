"""The protocol record: all that two scores must share to be compared."""

import collections
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from dit.distributed.device import library_versions
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.images import ImageSet
from dit.evaluation.metrics import compute as metrics
from dit.evaluation.metrics import precision_recall as neighbours
from dit.evaluation.references import Reference
from dit.evaluation.samples import without_classes
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
    *(
        "sampler",
        "steps",
        "cfg_scale",
        "cfg_interval",
        "cfg_channels",
        "eta",
        "variance",
        "seed",
        "precision",
    ),
    *(
        "weights",
        "weights_sha256",
        "step",
        "ema",
        "process",
        "objective",
        "vae",
        "vae_sha256",
        "data",
    ),
)
"""Entries of samples.json that the protocol shows, `unknown` where it lacks them; the rest follows."""

Section = dict[str, Any]


def protocol(
    samples: ImageSet,
    digest: str,
    settings: Section,
    reference: Reference,
    reference_digest: str,
    networks: Sequence[Extractor],
    device: torch.device,
    resamples: int = 0,
) -> dict[str, Section]:
    """Section -> entry -> value, plain JSON values."""
    return {
        "samples": {
            "source": samples.name,
            "count": len(samples),
            "size": format_size(samples.size),
            "labels": "none" if without_classes(settings) else balance(samples.labels),
            "pixels_sha256": digest,
        },
        "sampling": _sampling(settings),
        "reference": _reference(reference, reference_digest),
        **{f"features ({network.name})": _network(network) for network in networks},
        "scores": {**_scores(), "bootstrap resamples": resamples},
        "software": _software(device),
    }


def _sampling(settings: Section) -> Section:
    shown = {
        **dict.fromkeys(SAMPLING, UNKNOWN),
        **{k: v for k, v in settings.items() if k != "versions"},
    }
    if shown["cfg_channels"] is None:
        shown["cfg_channels"] = "all"
    return shown


def _reference(reference: Reference, digest: str) -> Section:
    images, statistics = reference.images, reference.statistics
    record = statistics.record if statistics else {}
    return {
        "source": reference.name,
        "count": len(images) if images else (statistics and statistics.count) or UNKNOWN,
        "size": format_size(images.size) if images else record.get("size", UNKNOWN),
        "crop": _crop(reference.crop)
        if images
        else _crop(record["crop"])
        if "crop" in record
        else UNKNOWN,
        "statistics": "from the file" if statistics else "computed",
        "sha256": digest,
    }


def _crop(size: Size | None) -> str:
    return f"ADM's, to {format_size(sides(size))}" if size else "none"


def _network(network: Extractor) -> Section:
    return {
        "weights": network.weights,
        "weights_sha256": network.checksum,
        "preprocessing": network.preprocessing,
        "widths (features, logits, spatial)": list(network.widths),
    }


def _scores() -> Section:
    """What the arithmetic depends on."""
    return {
        "KID": f"{metrics.KID_SUBSETS} subsets of {metrics.KID_SUBSET_SIZE} images, or of half the smaller set",
        "neighbours (precision, recall)": neighbours.NEIGHBOURS,
        "neighbours (density, coverage)": neighbours.DENSITY_NEIGHBOURS,
        "reference images (precision, recall, density, coverage)": f"at most {metrics.PRC_REFERENCE}",
        "IS": f"splits of {metrics.IS_SPLIT} images in order",
        "IS (torch-fidelity)": f"{metrics.IS_SPLITS} splits, shuffled",
        "subset seed": metrics.SEED,
    }


def balance(labels: Sequence[str] | None) -> str:
    """How many images of each class there are, in words."""
    if labels is None:
        return UNKNOWN
    counts = collections.Counter(labels).values()
    each = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{len(counts)} classes, {each} images each"


def _software(device: torch.device) -> Section:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        **library_versions(*LIBRARIES),
    }
