"""Points of a sweep: a setting and its scores, each in a file, so that none is computed twice."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dit.config import SamplerConfig, to_json
from dit.distributed.device import device_kind, library_versions
from dit.errors import UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.metrics.bootstrap import ci95
from dit.evaluation.metrics.compute import Score
from dit.evaluation.samples import image_settings
from dit.sampling.load import LoadedRun, with_classifier_labels
from dit.utils.files import reraise_as_user_error, sha256, write_json
from dit.utils.pictures import write_png
from dit.utils.typed_json import read_json


@dataclass(frozen=True, kw_only=True)
class Setting(SamplerConfig):
    """A sampler's settings, and the EMA length of the weights; None: those of the run."""

    ema_length: float | None = None


@dataclass(frozen=True)
class Point:
    """A setting and the scores of its samples.

    Args:
        setting: its sampler and steps are resolved: neither `auto` nor None.
        scores: by name, first the distance that ranks the points; only that one, without a value,
            where images came out as NaN.
        replicates: bootstrap replicates of that distance, of the same resamples at every point.
        evaluations: rows that the network computes for each image, with those of guidance.
        seconds: of sampling; None where that was interrupted.
        protocol: of these samples, as in a report; empty where there are none.
    """

    key: str
    setting: Setting
    scores: dict[str, Score]
    replicates: list[float]
    evaluations: int
    seconds: float | None
    protocol: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        if not self.scores:
            raise UserError("no score", "one or more", "score it again")
        if len(self.replicates) == 1:
            raise UserError("one replicate", "none, or two or more", "score it again")
        if self.setting.steps is None or self.setting.sampler == "auto":
            given = f"sampler {self.setting.sampler} with steps {self.setting.steps}"
            raise UserError(given, "a sampler and its steps", "score it again")

    @property
    def first(self) -> Score:
        """The score that ranks points."""
        return next(iter(self.scores.values()))

    @property
    def distance(self) -> float:
        """The value of the first score; infinite where it is not available."""
        return math.inf if self.first.value is None else self.first.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the distance, where it is known."""
        if self.first.value is None or not self.replicates:
            return None
        return ci95(self.distance, self.replicates)

    def value(self, name: str) -> float | None:
        return self.scores[name].value if name in self.scores else None


def classifier_scale(setting: SamplerConfig) -> float:
    """Return the weight of the classifier's gradient, 0 without a classifier."""
    return setting.classifier_scale if setting.classifier else 0.0


AXES: dict[str, Callable[[Setting], Any]] = {
    "ema-length": lambda setting: setting.ema_length,
    "cfg-scale": lambda setting: setting.cfg_scale,
    "classifier-scale": classifier_scale,
    "steps": lambda setting: setting.steps,
    "interval": lambda setting: setting.cfg_interval,
    "sampler": lambda setting: setting.sampler,
}
"""What a sweep varies."""
WORDS = {"steps": "{} steps", "interval": "times {}", "sampler": "{}"}  # others: their own name


def value_text(axis: str, setting: Setting) -> str:
    """Return a setting's value on an axis as its flag takes it."""
    value = AXES[axis](setting)
    if isinstance(value, tuple):
        return "{:g}-{:g}".format(*value)
    return value if isinstance(value, str) else f"{value:g}"


def words(axis: str, setting: Setting) -> str:
    """Return a setting's value on an axis in words."""
    return WORDS.get(axis, axis + " {}").format(value_text(axis, setting))


def describe(setting: Setting) -> str:
    """Return all values of a setting that are in use, in words."""
    unused = {
        "interval": setting.cfg_interval == (0, 1),
        "classifier-scale": setting.classifier is None,
        "ema-length": setting.ema_length is None,
    }
    axes = ("cfg-scale", "interval", "classifier-scale", "steps", "sampler", "ema-length")
    return ", ".join(words(axis, setting) for axis in axes if not unused.get(axis))


class Keys:
    """Keys of points: hashes of setting, samples, reference, networks, versions and device."""

    def __init__(
        self,
        run: LoadedRun,
        count: int,
        reference: str,
        networks: Sequence[Extractor],
        bootstrap: int,
        weights: Path | None = None,
    ):
        """Take `weights` for the run's network, or its own if None."""
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
        classes = with_classifier_labels(self.run, setting.classifier).card.classes
        values = [{**self.common, "classes": classes}, image_settings(self.run, setting)]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def picture_file(out: Path, key: str) -> Path:
    """Return the file of the first images of a point."""
    return out / "points" / f"{key}.png"


def point_file(out: Path, key: str) -> Path:
    return out / "points" / f"{key}.json"


def write_point(out: Path, point: Point, picture: Image.Image) -> Point:
    """Write the files of a finished point; return it."""
    # the picture first: a point whose scores exist is finished
    write_png(picture, picture_file(out, point.key))
    values = {
        **dataclasses.asdict(point),
        "setting": to_json(point.setting),
        "scores": {name: score.to_json() for name, score in point.scores.items()},
    }
    write_json(point_file(out, point.key), values)
    return point


def read_point(out: Path, key: str) -> Point | None:
    """Return a finished point, None if it is not finished; refuse damaged files."""
    file, picture = point_file(out, key), picture_file(out, key)
    if not file.exists():
        return None

    expected, do = "a point that dit sweep wrote", "it is scored again"
    point = read_json(file, Point, expected, do)
    if point.key != key:  # copied or renamed by hand
        raise UserError(f"{file} is of point {point.key}", expected, do)

    expected, do = "a picture that dit sweep drew", "it is drawn again"
    with reraise_as_user_error(picture, expected, do), Image.open(picture) as opened:
        opened.load()
    return point
