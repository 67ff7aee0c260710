"""Score a grid of sampling settings on one run, each from the same seeds; what is done is never done again."""

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from dit.commands.sweep import grid, results
from dit.commands.sweep.points import (
    Keys,
    Point,
    Setting,
    describe,
    picture_file,
    point_file,
    read_point,
    to_plain,
)
from dit.commands.sweep.ranking import rank
from dit.config import SamplerConfig, SweepConfig
from dit.config.validation import NOT_DDIM, NOT_DDPM, NOTHING_GUIDED, require_lengths, require_use
from dit.distributed.ranks import Ranks
from dit.encoders.text import Captioned
from dit.errors import NotFinite, UserError
from dit.evaluation.extractors.base import Extractor
from dit.evaluation.inputs.features import Extracted, extract
from dit.evaluation.inputs.images import ImageSet, read_images
from dit.evaluation.metrics.bootstrap import bootstrap
from dit.evaluation.metrics.compute import Score, score_names
from dit.evaluation.protocol import protocol
from dit.evaluation.references import (
    PreparedReference,
    Reference,
    choose_extractors,
    find_reference,
    prepare,
    score,
)
from dit.evaluation.samples import recorded_settings, sampled, settings_key
from dit.report.contact_sheets import bring_down
from dit.report.evaluation_page import number
from dit.runs import posthoc_ema as posthoc
from dit.runs.checkpoints import find_weights
from dit.sampling.generate import sample_latents
from dit.sampling.load import LoadedRun, load_run, with_classifier_labels
from dit.sampling.pipeline import build_pipeline
from dit.sampling.settings import find_sampler, has_null_class
from dit.utils import pictures
from dit.utils.files import make_folder, write_atomically, write_json
from dit.utils.image_size import size_of

SHOWN, CELL = 10, 80  # images of a point's picture, and the pixels they are brought to


@dataclass(frozen=True)
class SweepContext:
    """What all points of a sweep share."""

    cfg: SweepConfig
    run: LoadedRun
    reference: Reference
    networks: list[Extractor]
    standard: PreparedReference
    out: Path
    ranks: Ranks
    weights: dict[float | None, Path]  # files of them, by EMA length

    def of(self, length: float | None) -> "SweepContext":
        """The study with the network of that length loaded."""
        file = self.weights[length]
        known = self.run.weights.path == file
        return (
            self
            if known
            else dataclasses.replace(self, run=load_run(file, self.run.device, self.cfg.image_size))
        )


def sweep(cfg: SweepConfig, ranks: Ranks) -> Path:
    """Sample and score what is not scored yet, then write pages and figures; returns the folder of the results.

    All that can be wrong with flags, weights and reference is found before anything is sampled.

    Raises:
        UserError: a mistake in flags, files or images.
    """
    run = load_run(cfg.run, ranks.device, cfg.image_size)
    settings = settings_of(cfg, run)
    averages = ranks.on_main(lambda: _averages(cfg, settings))
    reference = _reference(cfg, run)
    networks = choose_extractors(cfg.extractor, cfg.weights, reference.network, ranks)
    out = cfg.out or run.home / "sweep"
    ranks.on_main(lambda: make_folder(out))
    ranks.on_main(lambda: results.check_count(out, cfg.num_samples))
    with ranks.alone_in(out):
        names = [network.name for network in networks]
        standard = prepare(
            reference, networks, names, cfg.num_samples, cfg.batch_size, ranks, cfg.cache
        )
        ranks.on_main(lambda: _check_distance(standard, names[0]))
        study = SweepContext(
            cfg,
            run,
            reference,
            networks,
            standard,
            out,
            ranks,
            {None: run.weights.path, **averages},
        )
        points = _score_all(study, settings)
        if ranks.main:
            found = results.Sweep(
                f"Sweep of {cfg.run}", cfg, points, rank(points), standard.floor, out, averages
            )
            paths = results.write(found)
            print("\n" + results.to_text(found) + "\n", *paths, sep="\n")
        ranks.barrier()
    return out


# -- the settings ------------------------------------------------------------------------------------------------


def settings_of(cfg: SweepConfig, run: LoadedRun) -> list[Setting]:
    """Every combination that the flags ask for and that the run can serve, each meaning once.

    Raises:
        UserError: flags that can not be read, too many settings, or one that the run can not serve.
    """
    known = get_args(get_type_hints(SamplerConfig)["sampler"])
    axes = (
        [None] if cfg.ema_length is None else grid.parse_numbers("--ema-length", cfg.ema_length),
        [
            find_sampler(name, run.card)
            for name in grid.parse_names("--sampler", cfg.sampler, known)
        ],
        [None] if cfg.steps is None else grid.parse_counts("--steps", cfg.steps),
        grid.parse_intervals("--interval", cfg.interval),
        grid.parse_numbers("--cfg-scale", cfg.cfg_scale or _usual_scales(cfg, run)),
        grid.parse_numbers("--classifier-scale", cfg.classifier_scale or "1")
        if cfg.classifier
        else [0.0],
    )
    require_use(cfg, ("guide", "interval", "cfg_channels"), axes[4] != [1.0], *NOTHING_GUIDED)
    require_use(cfg, ("eta",), "ddim" in axes[1], f"with --sampler {cfg.sampler}", *NOT_DDIM)
    require_use(cfg, ("variance",), "ddpm" in axes[1], f"with --sampler {cfg.sampler}", *NOT_DDPM)
    grid.check_count("the sweep", math.prod(len(axis) for axis in axes))
    pinned = dataclasses.replace(
        cfg,
        guide=cfg.guide and find_weights(cfg.guide),
        classifier=cfg.classifier and find_weights(cfg.classifier),
    )
    asked = [_resolve(run, pinned, *values) for values in itertools.product(*axes)]
    return list(dict.fromkeys(asked))


def _usual_scales(cfg: SweepConfig, run: LoadedRun) -> str:
    """Those of classifier-free guidance, where it is what guides."""
    return "1:4:0.5" if cfg.guide or (has_null_class(run.card) and not cfg.classifier) else "1"


def _resolve(
    run: LoadedRun,
    cfg: SweepConfig,
    length: float | None,
    sampler: Any,
    steps: int | None,
    interval: tuple[float, float],
    scale: float,
    weight: float,
) -> Setting:
    """A setting without `auto`, and without what it makes no use of: the meaning is one, and so is the point."""
    setting = Setting(
        ema_length=length,
        sampler=sampler,
        steps=steps,
        cfg_scale=scale,
        cfg_interval=(0.0, 1.0) if scale == 1 else interval,
        seed=cfg.seed,
        guide=None if scale == 1 else cfg.guide,
        classifier=cfg.classifier if weight else None,
        classifier_scale=weight or 1.0,
        cfg_channels=None if scale == 1 else cfg.cfg_channels,
        eta=cfg.eta if sampler == "ddim" else 0.0,
        variance=cfg.variance if sampler == "ddpm" else "auto",
        batch_size=cfg.batch_size,
        precision=cfg.precision,
        image_size=size_of(*run.image_size) if run.trained_size else None,
    )
    plan = build_pipeline(with_classifier_labels(run, setting.classifier), setting)
    return dataclasses.replace(setting, steps=plan.steps)


def _averages(cfg: SweepConfig, settings: Sequence[Setting]) -> dict[float | None, Path]:
    """Weights of every length, in the run as `dit ema` leaves them; those that are there stay.

    Raises:
        UserError: lengths that can not be made of the run's snapshots.
    """
    lengths = [
        *dict.fromkeys(setting.ema_length for setting in settings if setting.ema_length is not None)
    ]
    if not lengths:
        return {}
    require_lengths("--ema-length", tuple(lengths))
    files: dict[float | None, Path] = {}
    for mixture in posthoc.mixtures(cfg.run, lengths):
        file = files[mixture.length] = posthoc.default_file(cfg.run, mixture)
        if not file.exists():
            posthoc.write_mixture(mixture, file)
            print(mixture)
    return files


def _reference(cfg: SweepConfig, run: LoadedRun) -> Reference:
    """The reference that the flags name, else the run's own data, cropped as for training."""
    data = run.card.config.data
    name = cfg.reference or data
    crop = name == data and name != "digits" if cfg.crop is None else cfg.crop
    return find_reference(name, run.image_size, crop)


def _check_distance(standard: PreparedReference, network: str) -> None:
    target = standard.targets[network]
    if target.gaussian is None:
        raise UserError(
            f"no distance to the reference in the features of {network}: {target.missing}",
            "a reference that the first feature network can be compared with, to rank settings by",
            "pass another --reference, or another --extractor first",
        )


# -- the points --------------------------------------------------------------------------------------------------


def _score_all(study: SweepContext, settings: Sequence[Setting]) -> list[Point]:
    """Points in the order of the settings."""
    cfg, ranks = study.cfg, study.ranks
    shared = study.run, cfg.num_samples, study.standard.digest, study.networks, cfg.bootstrap
    key_of = {
        length: Keys(*shared, study.weights[length]) for length in {s.ema_length for s in settings}
    }
    keys = {key_of[setting.ema_length](setting): setting for setting in settings}
    points = ranks.on_main(lambda: _read_all(study.out, list(keys)))
    if ranks.main:
        before = f", {len(points)} of them scored before" if points else ""
        print(f"{len(keys)} settings of {cfg.num_samples:,} images each{before}")
        if others := {file.stem for file in (study.out / "points").glob("*.json")} - set(keys):
            print(
                f"{len(others)} scored before with other flags stay in {study.out / 'points'}, but not on the page"
            )
    with tqdm(
        total=len(keys),
        initial=len(points),
        desc="sweep",
        unit="setting",
        position=0,
        disable=not ranks.main,
    ) as bar:
        for key, setting in keys.items():
            if key in points:
                continue
            bar.set_postfix_str(_progress(setting, points.values()))
            study = study.of(setting.ema_length)
            with _told(study.out, len(points), len(keys), ranks):
                points[key] = _score_point(study, key, setting)
            bar.update()
            if ranks.main:
                tqdm.write(_line(points[key], len(points), len(keys)))
    return [points[key] for key in keys]


@contextmanager
def _told(out: Path, done: int, of: int, ranks: Ranks) -> Iterator[None]:
    """Say what an interruption leaves."""
    try:
        yield
    except KeyboardInterrupt:
        if ranks.main:
            tqdm.write(f"{done} of {of} settings are kept in {out}; the same command goes on")
        raise


def _read_all(out: Path, keys: Sequence[str]) -> dict[str, Point]:
    """Points that are finished and whole, by their keys."""
    points = {}
    for key in keys:
        try:
            point = read_point(out, key)
        except UserError as error:
            print(f"{error.given}: {error.do}")
            continue
        if point:
            points[key] = point
    return points


def _score_point(study: SweepContext, key: str, setting: Setting) -> Point:
    """Sample, look, score and write; where images come out as NaN, write that instead. On all ranks."""
    cfg, ranks = study.cfg, study.ranks
    folder = study.out / f"samples-{settings_key(study.run, setting, cfg.num_samples)}"
    begun, start = folder.exists(), time.monotonic()
    whole = (
        len(list(folder.glob("*.png"))) == cfg.num_samples
    )  # before: an earlier sweep was told to keep them
    keep = cfg.keep_samples or whole
    try:
        sampled(
            with_classifier_labels(study.run, setting.classifier),
            setting,
            cfg.num_samples,
            study.out,
            ranks,
        )
        seconds = None if begun else time.monotonic() - start
        samples = read_images(folder)
        found = extract(samples, study.networks, cfg.batch_size, ranks, "features of samples")
        point = ranks.on_main(lambda: _write_scored(study, key, setting, samples, found, seconds))
    except NotFinite as error:
        reason, keep = error.given, False
        point = ranks.on_main(lambda: _write_failed(study, key, setting, reason))
    if ranks.main and not keep:
        shutil.rmtree(folder)
    return point


def _write_scored(
    study: SweepContext,
    key: str,
    setting: Setting,
    samples: ImageSet,
    found: Extracted,
    seconds: float | None,
) -> Point:
    names, standard, device = [n.name for n in study.networks], study.standard, study.ranks.device
    gaussian, first = standard.targets[names[0]].gaussian, found.networks[names[0]].values
    assert gaussian
    record = protocol(
        samples,
        found.digest,
        recorded_settings(Path(samples.name)),
        study.reference,
        standard.digest,
        study.networks,
        device,
        study.cfg.bootstrap,
    )
    scores = score(found, standard, names, device)
    known = next(iter(scores.values())).value is not None
    point = Point(
        key=key,
        setting=setting,
        scores=scores,
        replicates=bootstrap(first, gaussian, study.cfg.bootstrap)
        if known and study.cfg.bootstrap
        else [],
        evaluations=count_evaluations(study.run, setting),
        seconds=seconds,
        protocol=record,
    )
    return _write(study.out, point, draw_first(samples))


def _write_failed(study: SweepContext, key: str, setting: Setting, reason: str) -> Point:
    """A point whose images came out as NaN: no distance, and an empty picture."""
    name, *_ = score_names(study.networks[0].name)
    failed = Score(name, None, "lower", study.cfg.num_samples, reason=reason)
    point = Point(key, setting, {name: failed}, [], count_evaluations(study.run, setting), None, {})
    return _write(study.out, point, Image.new("RGB", (CELL, CELL), pictures.PAPER))


def _write(out: Path, point: Point, picture: Image.Image) -> Point:
    """The picture first: a point whose scores are there is finished."""
    with write_atomically(picture_file(out, point.key)) as beside:
        picture.save(beside, format="PNG")
    write_json(point_file(out, point.key), to_plain(point))
    return point


def count_evaluations(run: LoadedRun, setting: SamplerConfig) -> int:
    """Rows that networks see for one image, those of guidance included: counted on one, not computed."""
    seen: list[int] = []
    plan = build_pipeline(
        with_classifier_labels(run, setting.classifier), dataclasses.replace(setting, compile=False)
    )
    modules = [
        cast(nn.Module, network.network if isinstance(network, Captioned) else network)
        for network in plan.networks
    ]
    hooks = [
        m.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        for m in modules
    ]
    try:
        one = torch.zeros(1, dtype=torch.int64)
        sample_latents(plan, one, one)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(seen)


def draw_first(samples: ImageSet) -> Image.Image:
    """The first images in a row: the same seeds and classes at every point."""
    images = bring_down(samples.stack(range(min(SHOWN, len(samples)))), CELL)
    return pictures.grid(
        images, None, len(images), pictures.fitting_scale(max(images.shape[-2:]), CELL)
    )


# -- what one sees of the work -----------------------------------------------------------------------------------


def _progress(setting: Setting, done: Iterable[Point]) -> str:
    best = min(
        (point for point in done if point.first.value is not None),
        key=lambda p: p.distance,
        default=None,
    )
    so_far = f"; best so far {number(best.distance)} at {describe(best.setting)}" if best else ""
    return describe(setting) + so_far


def _line(point: Point, place: int, of: int) -> str:
    value = point.first.reason if point.first.value is None else number(point.first.value)
    calls = f"{point.evaluations} network calls an image"
    return f"{place}/{of}  {describe(point.setting)}: {point.first.name} {value}, {calls}"
