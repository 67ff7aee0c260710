"""The command `dit sweep`: score a grid of sampling settings on a run, with the same seeds."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from dit.commands.sweep import results
from dit.commands.sweep.earlier import check_folder
from dit.commands.sweep.points import Keys, Point, Setting, describe, read_point
from dit.commands.sweep.ranking import rank
from dit.commands.sweep.score_point import SweepContext, score_point
from dit.commands.sweep.settings import ema_files, settings_of
from dit.config import SweepConfig
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.references import (
    PreparedReference,
    Reference,
    choose_extractors,
    find_reference,
    prepare_reference,
)
from dit.report.text import number
from dit.sampling.load import LoadedRun, load_run
from dit.sampling.resolve import notes_on_guidance
from dit.utils.outputs import create_folder, require_outside


def sweep(cfg: SweepConfig, ranks: Ranks) -> Path:
    """Sample and score what is not scored yet, write pages and figures; return their folder.

    Everything that can be wrong with flags, weights and reference is found before sampling.

    Raises:
        UserError: a mistake in flags, files or images.
    """
    run = load_run(cfg.run, ranks.device, cfg.image_size)
    settings = settings_of(cfg, run)
    strongest = max(settings, key=lambda setting: abs(setting.cfg_scale - 1))
    ranks.say(notes_on_guidance(strongest, run.card))
    lengths = dict.fromkeys(s.ema_length for s in settings if s.ema_length is not None)
    averages = ranks.on_main(lambda: ema_files(cfg.run, [*lengths]))
    reference = _reference(cfg, run)
    extractors = choose_extractors(cfg.extractor, cfg.weights, reference.network, ranks)
    names = [extractor.name for extractor in extractors]
    out = cfg.out or run.home / "sweep"
    if cfg.out:
        require_outside(out, cfg.reference, run.card.config.data)
    ranks.on_main(lambda: check_folder(out, cfg.num_samples))
    ranks.on_main(lambda: create_folder(out))

    with ranks.lock_folder(out):
        prepared = prepare_reference(
            reference, extractors, names, cfg.num_samples, cfg.batch_size, ranks, cfg.cache
        )
        # only now is it known what the reference has
        ranks.on_main(lambda: _check_distance(prepared, names[0]))
        weights = {None: run.weights.path, **averages}
        context = SweepContext(cfg, run, reference, extractors, prepared, out, ranks, weights)
        points = _score_all(context, settings)
        if ranks.main:
            title = f"Sweep of {cfg.run}"
            real_vs_real = prepared.real_vs_real
            swept = results.Sweep(title, cfg, points, rank(points), real_vs_real, out, averages)
            paths = results.write(swept)
            print("\n" + results.to_text(swept) + "\n", *paths, sep="\n")
        ranks.barrier()
    return out


def _reference(cfg: SweepConfig, run: LoadedRun) -> Reference:
    """Return the reference of the flags, or the run's own data, cropped as for training."""
    data = run.card.config.data
    name = cfg.reference or data
    crop = name == data and name != "digits" if cfg.crop is None else cfg.crop
    return find_reference(name, run.image_size, crop, run.card.config)


def _check_distance(prepared: PreparedReference, network: str) -> None:
    target = prepared.targets[network]
    if target.gaussian is None:
        raise UserError(
            f"no distance to the reference in the features of {network}: {target.missing}",
            "a reference that the first feature network can be compared with, to rank settings by",
            "pass another --reference, or another --extractor first",
        )


# -- the points ------------------------------------------------------------------------------------


def _score_all(context: SweepContext, settings: Sequence[Setting]) -> list[Point]:
    """Return the points in the order of the settings; finished ones are read."""
    cfg, ranks, out = context.cfg, context.ranks, context.out
    keys = _keys(context, settings)
    points = ranks.on_main(lambda: _read_finished(out, [*keys]))
    if ranks.main:
        before = f", {len(points)} of them scored before" if points else ""
        print(f"{len(keys)} settings of {cfg.num_samples:,} images each{before}")
        others = {file.stem for file in (out / "points").glob("*.json")} - set(keys)
        if others:
            print(f"{len(others)} scored with other flags stay in {out / 'points'}, off the page")

    counts = {"total": len(keys), "initial": len(points)}
    style = {"unit": "setting", "position": 0}
    with tqdm(desc="sweep", disable=not ranks.main, **counts, **style) as bar:
        for key, setting in keys.items():
            if key in points:
                continue
            bar.set_postfix_str(_progress(setting, points.values()))
            # settings are in the order of EMA lengths, so that each network is loaded once
            context = context.with_weights(setting.ema_length)
            with _report_interruption(out, len(points), len(keys), ranks):
                points[key] = score_point(context, key, setting)
            bar.update()
            if ranks.main:
                tqdm.write(f"{len(points)}/{len(keys)}  {_summary(points[key])}")
    return [points[key] for key in keys]


def _keys(context: SweepContext, settings: Sequence[Setting]) -> dict[str, Setting]:
    """Return the settings by the keys of their points."""
    cfg, digest = context.cfg, context.prepared.digest
    shared = (context.run, cfg.num_samples, digest, context.extractors, cfg.bootstrap)
    lengths = {setting.ema_length for setting in settings}
    key_of = {length: Keys(*shared, context.weights[length]) for length in lengths}
    return {key_of[setting.ema_length](setting): setting for setting in settings}


@contextmanager
def _report_interruption(out: Path, done: int, total: int, ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if ranks.main:
            kept = f"{done} of {total} settings are kept in {out}"
            tqdm.write(f"{kept}; the same command continues")
        raise


def _read_finished(out: Path, keys: Sequence[str]) -> dict[str, Point]:
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


def _progress(setting: Setting, done: Iterable[Point]) -> str:
    known = [point for point in done if point.first.value is not None]
    if not known:
        return describe(setting)
    best = min(known, key=lambda point: point.distance)
    return f"{describe(setting)}; best so far {number(best.distance)} at {describe(best.setting)}"


def _summary(point: Point) -> str:
    value = point.first.reason if point.first.value is None else number(point.first.value)
    calls = f"{point.evaluations} network calls an image"
    return f"{describe(point.setting)}: {point.first.name} {value}, {calls}"
