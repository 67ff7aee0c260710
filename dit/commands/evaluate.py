"""Score a run's samples, or a folder of them, against a reference."""

import dataclasses
from pathlib import Path

from dit.config import EvalConfig, SamplerConfig, TrainConfig, as_typed, flag_name
from dit.data.counts import count_of
from dit.distributed.ranks import Ranks
from dit.errors import UserError
from dit.evaluation.inputs.features import extract
from dit.evaluation.inputs.images import ImageSet, read_images
from dit.evaluation.metrics.memorisation import extract_training_images, pixel_extractor
from dit.evaluation.references import (
    MOST_SAMPLES,
    Reference,
    choose_extractors,
    find_reference,
    keep_classes,
    prepare_reference,
    same_data,
    usual_count,
)
from dit.evaluation.samples import (
    choose_classes,
    read_samples,
    recorded_settings,
    sample_to_folder,
)
from dit.report.evaluation_notes import note_colours
from dit.report.evaluation_page import claim_folder, to_text, write_report
from dit.report.findings import EvaluationInputs, build_report
from dit.sampling.load import load_to_sample
from dit.sampling.pipeline import build_pipeline
from dit.utils.outputs import require_outside

SAMPLER_FLAGS = [field.name for field in dataclasses.fields(SamplerConfig)]


def evaluate(cfg: EvalConfig, ranks: Ranks) -> Path:
    """Sample if a run is given, score, and write the report; return the folder of the report.

    Mistakes in flags, weights and reference are found before anything is sampled.

    Raises:
        UserError: a mistake in flags, files or images.
    """
    _check_flags(cfg)
    run = load_to_sample(cfg.run, ranks.device, cfg) if cfg.run else None
    samples = read_samples(cfg.samples) if cfg.samples else None
    ranks.say(samples.notes if samples else ())
    settings = recorded_settings(cfg.samples)
    trained = run.card.config if run else None
    data = trained.data if trained else settings.get("data")
    size = samples.size if samples else run.image_size  # type: ignore[union-attr]
    sampler = SamplerConfig(**{name: getattr(cfg, name) for name in SAMPLER_FLAGS})
    if run:
        # refuses what the run cannot do
        ranks.say(build_pipeline(run, sampler).notes)

    classes = choose_classes(cfg.classes, run, ranks) if run else None
    reference = _find_reference(cfg, size, data, trained)
    if run and classes:
        reference = keep_classes(reference, [run.card.class_name(label) for label in classes])
    scoring = choose_extractors(cfg.extractor, cfg.weights, reference.network, ranks)
    # before hours of sampling; the report notes it for images that exist
    ranks.say(note_colours(scoring, reference.images if run else None))
    count = len(samples) if samples else cfg.num_samples or usual_count(reference)
    originals = _find_training_images(cfg, data, size, reference)
    # Everything that needs an image runs in the same pass over the images.
    extractors = list(scoring)
    if not isinstance(originals, str):
        extractors.append(pixel_extractor(ranks.device))
    out = cfg.out or (run.home / "evaluation" if run else _default_folder(cfg.samples))
    if cfg.out:
        require_outside(out, cfg.samples, cfg.reference, data)
    ranks.on_main(lambda: claim_folder(out))

    names = [extractor.name for extractor in scoring]
    prepared = prepare_reference(
        reference, extractors, names, count, cfg.batch_size, ranks, cfg.cache
    )
    known = prepared.features if originals is reference.images else None
    training = extract_training_images(
        originals, known, extractors, cfg.batch_size, ranks, cfg.cache
    )
    if run:
        ranks.say([] if cfg.num_samples else [note_count(count)])
        folder = sample_to_folder(run, sampler, count, out, ranks, classes)
        samples, settings = read_images(folder), recorded_settings(folder)
    assert samples
    found = extract(samples, extractors, cfg.batch_size, ranks, "features of samples")
    comparison = EvaluationInputs(samples, settings, found, reference, prepared, scoring, training)
    with ranks.all_cores():
        ranks.on_main(lambda: _write_report(comparison, cfg, out, ranks))
    return out


def _check_flags(cfg: EvalConfig) -> None:
    if (cfg.run is None) == (cfg.samples is None):
        raise UserError(
            "neither --run nor --samples" if cfg.run is None else "both --run and --samples",
            "one of the two",
            "pass --run RUN to sample from it, or --samples DIR to score images",
        )
    if cfg.samples is None:
        return
    names = {*SAMPLER_FLAGS, "num_samples", "classes"} - {"batch_size"}
    for setting in dataclasses.fields(EvalConfig):
        value = getattr(cfg, setting.name)
        if setting.name in names and value != setting.default:
            flag = flag_name(setting.name)
            raise UserError(
                f"{as_typed(EvalConfig, setting.name, value)} with --samples",
                f"{flag} with --run only, for these images are sampled already",
                f"drop {flag}",
            )


def _find_reference(
    cfg: EvalConfig, size: tuple[int, int], data: str | None, trained: TrainConfig | None
) -> Reference:
    """Return the reference of the flags, else the training data, cropped as in training."""
    if cfg.reference is None and data is None:
        raise UserError(
            f"no --reference for {cfg.samples}",
            "digits, a folder of images, or an .npz file",
            "pass --reference",
        )
    name = cfg.reference or str(data)
    own_data = same_data(name, str(data)) and name != "digits"
    crop = own_data if cfg.crop is None else cfg.crop
    return find_reference(name, size, crop, trained)


def note_count(count: int) -> str:
    """Return how many samples are drawn where no number was asked for, and how to draw fewer."""
    return (
        f"{count_of(count, 'sample')} are drawn, as many as the reference has images, at most "
        f"{MOST_SAMPLES:,}: the bar says how long it takes; --num-samples N draws fewer"
    )


def _find_training_images(
    cfg: EvalConfig, data: str | None, size: tuple[int, int], reference: Reference
) -> ImageSet | str:
    """Return the images that samples may be copies of, or why copies are not searched for.

    They are those of --train-data, else the reference if it is the training data.
    """
    name = cfg.train_data or data
    if name is None:
        return "the training images are not known: pass --train-data"
    if reference.images and same_data(name, reference.name):
        return reference.images
    if cfg.train_data is None:
        return f"the training images, {name}, are not the reference: pass --train-data"

    images = find_reference(name, size, crop=True).images
    if images is None or len(images) < 2:
        raise UserError(
            f"--train-data {name} with {len(images) if images else 'no'} images",
            "2 or more",
            "pass the folder of training images",
        )
    return images


def _default_folder(samples: Path | None) -> Path:
    assert samples
    return samples.resolve().with_name(f"{samples.stem}-evaluation")


def _write_report(comparison: EvaluationInputs, cfg: EvalConfig, out: Path, ranks: Ranks) -> None:
    title = f"Evaluation of {cfg.run or cfg.samples}"
    report = build_report(comparison, cfg.run, title, cfg.bootstrap, ranks.device)
    paths = write_report(report, out)
    ranks.say(report.notes)
    print(to_text(report))
    for path in paths:
        print(path)
