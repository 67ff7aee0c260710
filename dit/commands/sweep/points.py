"""Points of a sweep: one setting each, its scores kept in a file of its own, so that none is computed twice."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dit.config import SamplerConfig, from_json, to_json
from dit.distributed.device import device_kind, library_versions
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.metrics.compute import Score
from dit.evaluation.samples import image_settings
from dit.sampling.load import LoadedRun, with_classifier_labels
from dit.utils.files import reraise_as_user_error, sha256


@dataclass(frozen=True, kw_only=True)
class Setting(SamplerConfig):
    """How noise becomes an image, and by which weights: an average of this length, or those of the run."""

    ema_length: float | None = None


@dataclass(frozen=True)
class Point:
    """A setting and what its samples scored.

    Args:
        setting: its sampler and steps are never `auto` or none.
        scores: by name, the distance that ranks the points first; that one alone where images came out as NaN.
        replicates: bootstrap replicates of that distance, from the same resamples of indices at every point.
        evaluations: rows that the network saw for each image, guidance's included.
        seconds: of sampling; unknown where that was interrupted.
        protocol: of these samples, as in a report; empty where there are none.
    """

    key: str
    setting: Setting
    scores: dict[str, Score]
    replicates: list[float]
    evaluations: int
    seconds: float | None
    protocol: dict[str, dict[str, Any]]

    @property
    def first(self) -> Score:
        """The score that ranks points."""
        return next(iter(self.scores.values()))

    @property
    def distance(self) -> float:
        """Its value; infinite where it is not available."""
        return math.inf if self.first.value is None else self.first.value

    def value(self, name: str) -> float | None:
        """Of a score; None where it is not available."""
        return self.scores[name].value if name in self.scores else None


def describe(setting: Setting) -> str:
    """A setting in words, as one would pass it."""
    low, high = setting.cfg_interval
    interval = "" if (low, high) == (0, 1) else f" at times {low:g}-{high:g}"
    classifier = f", classifier-scale {setting.classifier_scale:g}" if setting.classifier else ""
    average = "" if setting.ema_length is None else f", ema-length {setting.ema_length:g}"
    return f"cfg-scale {setting.cfg_scale:g}{interval}{classifier}, {setting.steps} steps, {setting.sampler}{average}"


def classifier_scale(setting: SamplerConfig) -> float:
    """Weight of the classifier's gradient, 0 without a classifier."""
    return setting.classifier_scale if setting.classifier else 0.0


class Keys:
    """Names of points: the same for the same setting, samples, reference, feature networks, versions and device."""

    def __init__(
        self,
        run: LoadedRun,
        count: int,
        reference: str,
        networks: Sequence[Extractor],
        bootstrap: int,
        weights: Path | None = None,
    ):
        """Of `weights` for the run's network, its own unless given."""
        self.run = run
        self.common = {
            "count": count,
            "weights": sha256(weights or run.weights.path),
            "vae": run.autoencoder.checksum,
            "classes": run.card.classes,
            "reference": reference,
            "networks": [[n.name, n.checksum, n.preprocessing] for n in networks],
            "bootstrap": bootstrap,
            "versions": {**run.versions, **library_versions("torch-fidelity")},
            "device": device_kind(run.device),
        }

    def __call__(self, setting: SamplerConfig) -> str:
        """Of one setting."""
        shared = {
            **self.common,
            "classes": with_classifier_labels(self.run, setting.classifier).card.classes,
        }
        return hashlib.sha256(
            json.dumps([shared, image_settings(self.run, setting)]).encode()
        ).hexdigest()[:12]


def picture_file(out: Path, key: str) -> Path:
    """Where the picture of a point's first images lies."""
    return out / "points" / f"{key}.png"


def point_file(out: Path, key: str) -> Path:
    """Where a point's scores lie."""
    return out / "points" / f"{key}.json"


def to_plain(point: Point) -> dict[str, Any]:
    """As plain JSON values."""
    return {
        **dataclasses.asdict(point),
        "setting": to_json(point.setting),
        "scores": {name: score.to_json() for name, score in point.scores.items()},
    }


def read_point(out: Path, key: str) -> Point | None:
    """A finished point; None where it is not finished.

    Raises:
        UserError: its files are damaged.
    """
    file, picture = point_file(out, key), picture_file(out, key)
    if not file.exists():
        return None
    with reraise_as_user_error(file, "a point that dit sweep wrote", "it is scored again"):
        values = json.loads(file.read_text())
        scores = {name: Score.from_json(score) for name, score in values["scores"].items()}
        setting = from_json(Setting, values["setting"])
        point = Point(**{**values, "scores": scores, "setting": setting})
        if point.key != key or not scores:
            raise ValueError(f"it is of point {point.key}")
    with (
        reraise_as_user_error(picture, "a picture that dit sweep drew", "it is drawn again"),
        Image.open(picture) as opened,
    ):
        opened.load()
    return point
