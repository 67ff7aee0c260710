"""Sample and score one setting of a sweep."""

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dit.commands.sweep.evaluations import count_evaluations
from dit.commands.sweep.points import Point, Setting, write_point
from dit.config import SweepConfig
from dit.distributed.ranks import Ranks
from dit.errors import NotFinite
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.features import Extracted, extract
from dit.evaluation.inputs.images import ImageSet, read_images
from dit.evaluation.metrics.bootstrap import bootstrap
from dit.evaluation.metrics.compute import Score, score_names
from dit.evaluation.protocol import build_protocol
from dit.evaluation.references import PreparedReference, Reference, score_samples
from dit.evaluation.samples import recorded_settings, sample_to_folder, settings_key
from dit.report.contact_sheets import draw_first
from dit.sampling.load import LoadedRun, load_run, with_classifier_labels

SHOWN, CELL = 10, 80  # images of a point's picture, and their pixels


@dataclass(frozen=True)
class SweepContext:
    """What all points of a sweep share; `weights` are files by EMA length."""

    cfg: SweepConfig
    run: LoadedRun
    reference: Reference
    extractors: list[Extractor]
    prepared: PreparedReference
    out: Path
    ranks: Ranks
    weights: dict[float | None, Path]

    def with_weights(self, length: float | None) -> "SweepContext":
        """Return the context with the network of an EMA length loaded."""
        file = self.weights[length]
        if self.run.weights.path == file:
            return self
        run = load_run(file, self.run.device, self.cfg.image_size)
        return dataclasses.replace(self, run=run)


def score_point(context: SweepContext, key: str, setting: Setting) -> Point:
    """Sample, score and write a point, on all ranks; images of NaN make one without a distance."""
    cfg, run, ranks = context.cfg, context.run, context.ranks
    folder = context.out / f"samples-{settings_key(run, setting, cfg.num_samples)}"
    is_new, start = not folder.exists(), time.monotonic()
    # complete before: an earlier sweep was to keep them
    keep = cfg.keep_samples or len([*folder.glob("*.png")]) == cfg.num_samples
    try:
        labelled = with_classifier_labels(run, setting.classifier)
        sample_to_folder(labelled, setting, cfg.num_samples, context.out, ranks)
        seconds = time.monotonic() - start if is_new else None
        samples = read_images(folder)
        features = extract(
            samples, context.extractors, cfg.batch_size, ranks, "features of samples"
        )
        point = ranks.on_main(
            lambda: _write_scored(context, key, setting, samples, features, seconds)
        )
    except NotFinite as error:
        reason, keep = error.given, False
        point = ranks.on_main(lambda: _write_failed(context, key, setting, reason))

    if ranks.main and not keep:
        shutil.rmtree(folder)
    return point


def _write_scored(
    context: SweepContext,
    key: str,
    setting: Setting,
    samples: ImageSet,
    features: Extracted,
    seconds: float | None,
) -> Point:
    prepared, resamples = context.prepared, context.cfg.bootstrap
    names, device = [extractor.name for extractor in context.extractors], context.ranks.device
    scores = score_samples(features, prepared, names, device)
    replicates: list[float] = []
    if resamples and next(iter(scores.values())).value is not None:
        gaussian = prepared.targets[names[0]].gaussian
        assert gaussian
        replicates = bootstrap(features.networks[names[0]].values, gaussian, resamples)

    record = build_protocol(
        samples,
        features.digest,
        recorded_settings(Path(samples.name)),
        context.reference,
        prepared.digest,
        context.extractors,
        device,
        resamples,
    )
    calls = count_evaluations(context.run, setting)
    point = Point(key, setting, scores, replicates, calls, seconds, record)
    return write_point(context.out, point, draw_first(samples, SHOWN, CELL))


def _write_failed(context: SweepContext, key: str, setting: Setting, reason: str) -> Point:
    name, *_ = score_names(context.extractors[0].name)
    failed = Score(name, None, "lower", context.cfg.num_samples, reason=reason)
    calls = count_evaluations(context.run, setting)
    point = Point(key, setting, {name: failed}, [], calls, None, {})
    return write_point(context.out, point, Image.new("RGB", (CELL, CELL), "white"))
